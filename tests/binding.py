"""binding.py: the Python binding against an installed library; tests/check_install.sh runs it.

    binding.py MODEL FOLDER SIZES

MODEL is a Hugging Face folder, FOLDER takes files, SIZES has lines "struct size" and "function name" that a C compiler
and the header say. Ends with "N passed, N failed".
"""
import io
import os
import sys
import threading
import traceback

import libquant

source, folder, sizes = sys.argv[1:4]
model_path = os.path.join(folder, "binding.gguf")
context = libquant.Context(threads=2)
tests = []


def test(f):
    tests.append(f)
    return f


def raises(kind, call, status=None):
    try:
        call()
    except kind as e:
        assert status is None or e.status == status, e
        return e
    raise AssertionError(f"no {kind.__name__} was raised")


@test
def structs_are_those_of_the_header():
    mirrored = {c.__name__.lstrip("_").lower(): c for c in libquant.Record.__subclasses__() + [
        libquant._Item, libquant.LogitBias, libquant.LogProb]}
    functions = set()
    for kind, name, size in (line.split() for line in open(sizes)):
        if kind == "function":
            functions.add(name)
            continue
        record = mirrored.pop(name.replace("lq_", "").replace("_", ""), None)
        assert record, f"{name} of libquant.h is not in libquant.py"
        assert libquant.ctypes.sizeof(record) == int(size), f"{name} of libquant.py is not that of libquant.h"
    assert not mirrored, f"libquant.h has no {mirrored}"
    differ = functions ^ set(libquant._FUNCTIONS)
    assert not differ, f"not in both libquant.h and libquant.py: {differ}"


@test
def tables():
    assert "q4_k_m" in libquant.schemes() and libquant.schemes()["q4_k_m"]
    f16 = [f for f in libquant.formats() if f.name == "f16"][0]
    assert f16.bits_per_weight == 16 and f16.gguf_id == 1
    assert libquant.version().count(".") == 2
    assert context.devices[0].name == "cpu:0" and context.devices[0].threads == 2


@test
def quantize_reports_and_cancels():
    seen, names = [], []
    r = context.quantize(source, model_path, "q8_0", progress=lambda done, total, what: seen.append((done, total)),
                         report=lambda t: names.append((t.name, t.to)))
    assert r.tensors == len(names) and os.path.getsize(model_path) == r.bytes
    assert ("output.weight", "q8_0") in names and seen[-1][0] <= seen[-1][1]
    other = os.path.join(folder, "other.gguf")
    raises(libquant.Cancelled, lambda: context.quantize(source, other, "q8_0", progress=lambda *_: True))
    raises(ZeroDivisionError, lambda: context.quantize(source, other, "q8_0", progress=lambda *_: 1 // 0))
    raises(ZeroDivisionError, lambda: context.quantize(source, other, "q8_0", report=lambda t: 1 // 0))
    assert not os.path.exists(other)
    e = raises(libquant.Error, lambda: context.quantize(source, model_path, "q8_0"), libquant.E_ARG)
    assert "exists" in e.detail and e.name == "LQ_E_ARG" and str(e).startswith("LQ_E_ARG: ")


@test
def errors():
    e = raises(libquant.Error, lambda: context.open(os.path.join(folder, "none.gguf")), libquant.E_IO)
    assert "none.gguf" in str(e)
    raises(libquant.Error, lambda: libquant.Context(isa="z80"))
    raises(ValueError, lambda: context.open("a\0b"))
    with context.open(model_path) as model:
        e = raises(TypeError, lambda: model.session(contxt=4))
        assert "context" in str(e)
        with model.session(context=4) as s:
            raises(libquant.ContextFull, lambda: s.decode([1, 2, 3, 4, 5]))
            assert len(s) == 0
    raises(ValueError, lambda: model.session())


@test
def model_says_what_it_is():
    with context.open(model_path) as model:
        assert model.info.architecture == "llama" and model.info.layers == 6 and model.info.file_scheme == "q8_0"
        assert model.info.as_dict()["context"] == 256 and "layers=6" in repr(model.info)
        assert model.meta()["general.architecture"] == "llama"
        tensors = model.tensors()
        assert len(tensors) == model.info.tensors
        index = [t.name for t in tensors].index("output_norm.weight")
        assert len(model.tensor_row(index, 0)) == model.info.embedding
        assert model.plan(context=64).kv < model.plan(context=128).kv
        assert model.token("</s>") == model.info.eos and model.token("no such piece") is None


@test
def text_and_back():
    with context.open(model_path) as model:
        for text in ("Once upon a time", "naïve € 😀 \n\ttabs", "a" * 5000):
            ids = model.tokenize(text)
            assert ids[0] == model.info.bos and model.detokenize(ids) == text
        assert model.detokenize_bytes(model.tokenize(b"\xff\x00")) == b"\xff\x00"
        assert model.tokenize("") == [model.info.bos] and model.tokenize("", bos=False) == []


@test
def samplers():
    assert libquant.sample_logits([1, 2, 3], libquant.Sampler(logit_bias={2: -float("inf"), 0: 4})) == 0
    assert libquant.sample_logits([1, 2, 3], libquant.Sampler(repeat_penalty=4), ids=[2]) == 1
    seen = []

    def only_the_first(logits, ids):
        seen.append(ids)
        for i in range(1, len(logits)):
            logits[i] = -float("inf")

    assert libquant.sample_logits([1, 2, 3], libquant.Sampler(mask=only_the_first), ids=[2, 1]) == 0 and seen == [[2, 1]]

    def fails(_logits, _ids):
        raise KeyError("no grammar")
    broken = libquant.Sampler(mask=fails)
    for _ in range(2):
        raises(KeyError, lambda: libquant.sample_logits([1, 2], broken))
    steady = libquant.Sampler(temperature=1, mirostat_tau=2)
    assert steady.mu == 4
    libquant.sample_logits([1, 2, 3], steady)
    assert steady.mu != 4
    loops = libquant.Sampler(dry_multiplier=5, dry_breakers=["\n", ":"])
    assert loops.as_dict()["dry_breakers"] == ["\n", ":"]
    raises(libquant.Error, lambda: libquant.sample_logits([1, 2], loops))  # whose texts?
    with context.open(model_path) as model:
        row = [0.0] * model.info.vocabulary
        row[302], row[5] = 2, 1  # 302 followed 300 301 before
        assert libquant.sample_logits(row, loops, ids=[300, 301, 302, 300, 301], model=model) == 5
        assert libquant.sample_logits(row, loops, ids=[300, 301, 302, 301, 300], model=model) == 302


@test
def generation():
    with context.open(model_path) as model:
        with model.session() as s:
            pieces = list(s.generate("Once upon a time", max_tokens=24))
            assert s.stats.decode_tokens == 23 and len(s) == len(model.tokenize("Once upon a time")) + 24
            hash_all = s.stats.last_logits_hash
        with model.session() as s: # the same by hand
            ids = model.tokenize("Once upon a time")
            s.decode(ids)
            made = []
            for _ in range(24):
                row = s.logits()
                made.append(s.sample())
                assert row[made[-1]] == max(row) and libquant.sample_logits(row) == made[-1]
                top = s.logprobs(3)
                assert top[0].id == made[-1] and top[0].logprob == s.logprob(made[-1]) >= top[1].logprob
                if len(made) < 24:
                    s.decode(made[-1:])
            assert s.stats.last_logits_hash == hash_all
            assert model.detokenize(ids + made) == "Once upon a time" + "".join(pieces)
            s.truncate(len(ids))
            assert list(s.tokens(0)) == [] and len(s) == len(ids)
        with model.session() as s:  # a stop string, wherever it lies
            text = "".join(pieces)
            ids = model.tokenize("Once upon a time")
            got = "".join(s.generate(ids, max_tokens=24, stop=["nowhere to be found", text[7:12]]))
            assert got == text[: text.index(text[7:12])] and s.sequence().pending == 1
            s.sync(ids)
            last = list(s.steps(libquant.Sampler(stop=text[7:12].encode(), max_tokens=24)))[-1]
            assert last.end == "stop" and last.stop == 0
            raises(libquant.Error, lambda: s.step(libquant.Sampler(stop=[""])), libquant.E_ARG)
            raises(ValueError, lambda: libquant.Sampler(stop="a\0"))
        with model.session(ngram=3, draft=model, draft_tokens=5) as s:  # guesses change nothing
            assert list("".join(s.generate(ids, max_tokens=24))) == list(text)
            assert s.stats.accepted == s.stats.drafted > 12 or s.stats.accepted > 0
        with model.session(embed=1, sequences=2) as s:
            one, two = s.embed([ids, ids[:3]])
            assert len(one) == model.info.embedding and abs(sum(x * x for x in one) - 1) < 1e-5 and one != two
            assert s.embed([ids[:3], ids]) == [two, one] and s.embed([ids], pooling="last") != [one]
            raises(ValueError, lambda: s.embed([ids], pooling="most"))
        with model.session() as s, model.session() as t:
            how = dict(temperature=1.0, top_k=50, seed=7, max_tokens=40)
            assert list(s.generate("The", **how)) == list(t.generate("The", **how))
        with model.session(context=16) as s:
            ids = model.tokenize("Once upon a time")
            s.decode(ids)
            assert len(list(s.tokens(stop_at_eos=False))) == 16 - len(ids)
        with model.session(context=16, overflow="slide", overflow_keep=4) as s:
            s.decode(ids)
            assert s.info.overflow == "slide" and s.info.overflow_keep == 4
            assert len(list(s.tokens(40, stop_at_eos=False))) == 40
            now = s.sequence()
            assert now.dropped_in_all == len(ids) + 40 - len(s) and now.dropped_in_all % 6 == 0


@test
def sequences():
    with context.open(model_path) as model, model.session(sequences=3, max_logits=3) as s:
        ids = model.tokenize("There was a king who had three daughters, and the eldest of them was very proud. " * 4)
        s.decode(ids)
        first = s.sample()
        s.fork(0, 2)
        assert s.length(2) == len(ids) and s.length(1) == 0
        s.sync(ids, sequence=1)
        assert s.sample() == first and s.sequence(1).cached > 32 and s.sequence(1).miss == ""
        s.decode_all({0: [first], 2: [first], 1: [first, 5]})
        assert s.logits(0) == s.logits(1) != s.logits(2) and s.sample(row=0) == s.sample(row=1)
        assert [s.length(i) for i in range(3)] == [len(ids) + 1, len(ids) + 2, len(ids) + 1]
        s.truncate(3, sequence=1)
        assert s.length(1) == 3 and len(s) == len(ids) + 1
        raises(libquant.Error, lambda: s.fork(0, 3), libquant.E_ARG)
        file = io.BytesIO()
        s.save(file, sequence=2)
        file.seek(0)
        s.load(file, sequence=1)
        s.decode_all({1: [5], 2: [5]})
        assert s.length(1) == s.length(2) == len(ids) + 2 and s.logits(0) == s.logits(1)
        raises(libquant.Error, lambda: s.load(io.BytesIO(file.getvalue()[:-1])), libquant.E_TRUNCATED)


@test
def devices():
    raises(libquant.Error, lambda: context.open(model_path, device="abacus:0"), libquant.E_ARG)
    raises(libquant.Error, lambda: context.open(model_path, gpu_layers=2), libquant.E_ARG)
    with context.open(model_path, device="cpu") as model:
        assert model.plan().device == "" and model.plan().device_total == 0 and model.plan().layers == 6
        with model.session(activations="f32") as s:
            want = list(s.generate("Once upon a time", max_tokens=8))
    for name in [d.name for d in context.devices[1:]]:
        with context.open(model_path, device=name, plan_only=True) as model:
            planned = model.plan(activations="f32")
            assert planned.device == name and planned.device_embedding == 1 and planned.border_bytes == 0
            raises(libquant.Error, lambda: model.session(), libquant.E_ARG)
        for layers in (0, 2):
            with context.open(model_path, device=name, gpu_layers=layers) as model:
                plan = model.plan(activations="f32")
                assert plan.device_layers == (layers or 6) and plan.device_total > 0
                assert layers or plan.device_total == planned.device_total
                with model.session(activations="f32") as s:
                    assert list(s.generate("Once upon a time", max_tokens=8)) == want
                    assert (s.stats.border_bytes > 0) == (layers > 0)
                    assert s.info.device_kv_bytes == plan.device_kv


@test
def cancelling_from_another_thread():
    with context.open(model_path) as model, model.session() as s:
        timer = threading.Timer(0.2, s.cancel)
        timer.start()

        def forever():
            while True:
                s.truncate(0)
                s.decode(model.tokenize("a b c d e f g h"))

        raises(libquant.Cancelled, forever)
        timer.join()


@test
def evaluation():
    with context.open(source) as f16, context.open(model_path) as q8:
        with f16.session(max_logits=256) as reference, q8.session(max_logits=256) as candidate:
            ids = f16.tokenize("The quick brown fox jumps over the lazy dog. " * 60)
            alone = candidate.evaluate(ids)
            own, (result,) = reference.compare([candidate], ids)
            assert result.ppl == alone.ppl and own.ppl > 1 and 0 <= result.kld_mean < 0.1 and result.same_top > 0.9
            raises(KeyError, lambda: candidate.evaluate(ids, progress=lambda *_: {}[0]))


@test
def calibration():
    stats = os.path.join(folder, "binding.stats.gguf")
    with context.open(source) as model, model.session(activations="f32") as s:
        ids = model.tokenize("The quick brown fox jumps over the lazy dog. " * 60)
        made = s.calibrate(ids, stats, dataset="fox")
        assert made.chunks * made.window == made.tokens and made.entries > 0 and made.bytes == os.path.getsize(stats)
        raises(libquant.Error, lambda: s.calibrate(ids, stats), libquant.E_ARG)
        raises(libquant.Cancelled, lambda: s.calibrate(ids, stats, force=True, progress=lambda *_: True))
    r = context.quantize(source, os.path.join(folder, "calibrated.gguf"), "q4_0", importance=stats)
    assert r.with_importance == made.entries


@test
def handles():
    ctx = libquant.Context()
    model = ctx.open(model_path)
    session = model.session()
    ctx.close() # takes its children along
    ctx.close()
    raises(ValueError, lambda: session.sample())
    raises(ValueError, lambda: model.tokenize("a"))
    kept = libquant.Context().open(model_path).session() # nothing else refers to the context and the model
    kept.decode([1])
    assert len(kept) == 1


failed = 0
for f in tests:
    try:
        f()
    except BaseException:
        failed += 1
        print(f"FAIL: binding.py: {f.__name__}")
        traceback.print_exc(file=sys.stdout)
print(f"{len(tests) - failed} passed, {failed} failed")
sys.exit(failed > 0)
