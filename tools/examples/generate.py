#!/usr/bin/env python3
"""generate.py: load a model, let it write, print the text as it comes.

    PYTHONPATH=/usr/local/share/libquant/python ./generate.py MODEL PROMPT [TOKENS [TEMPERATURE]]
"""
import signal
import sys

import libquant

if len(sys.argv) < 3:
    sys.exit("usage: generate.py MODEL PROMPT [TOKENS [TEMPERATURE]]")
tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 32
temperature = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0  # 0: always the most likely token

try:
    with libquant.Context() as ctx, ctx.open(sys.argv[1]) as model, model.session() as session:
        signal.signal(signal.SIGINT, lambda *_: session.cancel())
        print(sys.argv[2], end="")
        for piece in session.generate(sys.argv[2], max_tokens=tokens, temperature=temperature):
            print(piece, end="", flush=True)
        print()
except libquant.Cancelled:
    print()
except libquant.Error as e:
    sys.exit(str(e))
