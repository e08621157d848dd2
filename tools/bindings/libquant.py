"""libquant for Python: quantize large language models and run them. One file, no dependency but the standard library.

    import libquant

    with libquant.Context() as ctx:
        ctx.quantize("my-model/", "my-model.gguf", scheme="q4_k_m")
        with ctx.open("my-model.gguf") as model, model.session() as session:
            for piece in session.generate("Once upon a time", max_tokens=64):
                print(piece, end="", flush=True)

A model runs on the processor, or on another device: ctx.open("my-model.gguf", device="vulkan:0"). ctx.devices lists
what is here.

It is a thin layer over libquant.h, which documents every call. What differs:

Errors      A call that fails raises Error, with the status code, its name and the library's sentence. Subclasses exist
            for what programs treat differently: OutOfMemory (also a MemoryError), ContextFull, Cancelled.
Handles     Context, Model and Session are context managers; close() twice does nothing, and use after close() raises
            ValueError. Closing a Model closes its Sessions, closing a Context its Models.
Options     Keyword arguments with the names of the fields of the C structs; what is not given is the default.
Results     Info and result structs come back as Record: attributes by the C names (text as str), as_dict(), a readable
            repr.
Callbacks   progress(done, total, what) returns True to cancel; an exception in it cancels too and is raised by the
            call. log(level, message) must not raise. Both run while Python's lock is held; everything else releases it.
Threads     As in C: a Session serves one thread at a time; Session.cancel() may come from any thread. Python runs its
            signal handlers between calls and in callbacks, not during a call of the library.

The library is looked for, in this order: load(path); the environment variable LIBQUANT; beside this file, in the build
folder of a checkout, and where an installed copy of this file has it; where the system keeps its libraries.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import weakref
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int, c_int32
from ctypes import c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar, Union

__all__ = ["Cancelled", "Context", "ContextFull", "Error", "LogProb", "Model", "OutOfMemory", "Record", "Sampler",
           "SeqInfo", "Session", "formats", "load", "sample_logits", "schemes", "version"]

Path = Union[str, "os.PathLike[str]"]
Progress = Callable[[int, int, str], Optional[bool]]
Log = Callable[[int, str], None]

OK = 0
E_ARG, E_IO, E_TRUNCATED, E_FORMAT, E_LIMIT, E_UNSUPPORTED = -1, -2, -3, -4, -5, -6
E_INCONSISTENT, E_NOMEM, E_CONTEXT, E_BUSY, E_CANCELLED, E_NUMERIC = -7, -8, -9, -10, -11, -12
FATAL, E_DEVICE, E_INTERNAL = -100, -101, -102

_ABI = "0"  # the number in the library's SONAME


class Error(Exception):
    """A failed call. `status` is the code of libquant.h, `name` its name, `detail` the library's sentence."""

    def __init__(self, status: int, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}" if detail else name)
        self.status, self.name, self.detail = status, name, detail


class OutOfMemory(Error, MemoryError):
    """LQ_E_NOMEM"""


class ContextFull(Error):
    """LQ_E_CONTEXT: the sequence would exceed the context of its session."""


class Cancelled(Error):
    """LQ_E_CANCELLED: Session.cancel() or a callback asked to stop."""


_ERRORS: Dict[int, Type[Error]] = {E_NOMEM: OutOfMemory, E_CONTEXT: ContextFull, E_CANCELLED: Cancelled}


# ---------------------------------------------------------------------------------------------- structs of libquant.h


class Record(ctypes.Structure):
    """A struct of libquant.h: attributes by the C names."""

    def __init__(self, **values: Any) -> None:
        known = {name for name, *_ in self._fields_}
        for name in values:
            if name not in known or name == "size":
                raise TypeError(f"there is no option '{name}'; there are: {', '.join(sorted(known - {'size'}))}")
        if "size" in known:
            values["size"] = ctypes.sizeof(self)
        super().__init__(**values)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def as_dict(self) -> Dict[str, Any]:
        """The fields as plain Python values, arrays as lists."""
        out: Dict[str, Any] = {}
        for name, *_ in self._fields_:
            value = getattr(self, name)
            if name != "size":
                out[name] = list(value) if isinstance(value, ctypes.Array) else value
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.as_dict().items())})"


_LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)
_PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64, c_char_p)
_WRITE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_READ = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_MASK = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_float), c_size_t, POINTER(c_int32), c_size_t)


class _Options(Record):
    _fields_ = [("size", c_uint32), ("threads", c_uint32), ("isa", c_char_p), ("allocator", c_void_p), ("log", _LOG),
                ("log_user", c_void_p), ("threads_prefill", c_uint32), ("huge_pages", c_char_p), ("numa", c_char_p),
                ("lock", c_uint32)]


class DeviceInfo(Record):
    _fields_ = [("size", c_uint32), ("threads", c_uint32), ("name", c_char * 64), ("description", c_char * 96),
                ("isa", c_char * 32), ("memory", c_uint64), ("placing", c_char * 256)]


class FormatInfo(Record):
    _fields_ = [("size", c_uint32), ("block_weights", c_uint32), ("block_bytes", c_uint32), ("gguf_id", c_int32),
                ("name", c_char_p), ("bits_per_weight", c_double)]


class _ModelOptions(Record):
    _fields_ = [("size", c_uint32), ("check_tensors", c_uint32), ("no_mmap", c_uint32), ("device", c_char_p),
                ("gpu_layers", c_uint32), ("plan_only", c_uint32), ("no_pack", c_uint32), ("load_as", c_char_p),
                ("pack_at_open", c_uint32), ("loras", POINTER(c_char_p)), ("lora_scales", POINTER(c_float)), ("n_loras", c_uint32)]


class ModelInfo(Record):
    _fields_ = [("size", c_uint32), ("architecture", c_char * 32), ("name", c_char * 64), ("container", c_char * 32),
                ("file_scheme", c_char * 32), ("layers", c_uint32), ("heads", c_uint32), ("heads_kv", c_uint32),
                ("head_dim", c_uint32), ("embedding", c_uint32), ("feed_forward", c_uint32), ("vocabulary", c_uint32),
                ("context", c_uint32), ("parameters", c_uint64), ("weight_bytes", c_uint64),
                ("bytes_per_token", c_uint64), ("bits_per_weight", c_double), ("tensors", c_uint32), ("bos", c_int32),
                ("eos", c_int32), ("add_bos", c_uint32), ("rope_scaling", c_char_p), ("rope_factor", c_double),
                ("rope_original", c_uint32), ("longest_context", c_uint32)]


class TensorInfo(Record):
    _fields_ = [("size", c_uint32), ("rank", c_uint32), ("shape", c_uint64 * 8), ("bytes", c_uint64),
                ("name", c_char_p), ("role", c_char_p), ("format", c_char_p)]


class TensorReport(Record):
    _fields_ = [("size", c_uint32), ("name", c_char_p), ("from_", c_char_p), ("to", c_char_p), ("wanted", c_char_p),
                ("weights", c_uint64), ("bytes", c_uint64), ("rel_error", c_double), ("importance", c_uint32),
                ("quantizer", c_char_p), ("weighted_error", c_double), ("bits_per_weight", c_double),
                ("adapters", c_uint32), ("transform", c_char_p)]


_REPORT = ctypes.CFUNCTYPE(None, c_void_p, POINTER(TensorReport))


class _QuantizeOptions(Record):
    _fields_ = [("size", c_uint32), ("scheme", c_char_p), ("threads", c_uint32), ("force", c_uint32),
                ("requantize", c_uint32), ("dry_run", c_uint32), ("progress", _PROGRESS), ("report", _REPORT),
                ("user", c_void_p), ("importance", c_char_p), ("recipe", c_char_p), ("loras", POINTER(c_char_p)),
                ("lora_scales", POINTER(c_float)), ("n_loras", c_uint32)]


class QuantizeResult(Record):
    _fields_ = [("size", c_uint32), ("tensors", c_uint32), ("fallbacks", c_uint32), ("weights", c_uint64),
                ("bytes", c_uint64), ("bits_per_weight", c_double), ("seconds", c_double),
                ("with_importance", c_uint32), ("without_importance", c_uint32), ("adapted", c_uint32)]


class _SessionOptions(Record):
    _fields_ = [("size", c_uint32), ("context", c_uint32), ("batch", c_uint32), ("max_logits", c_uint32),
                ("threads", c_uint32), ("activations", c_char_p), ("threads_prefill", c_uint32),
                ("sequences", c_uint32), ("no_reuse", c_uint32), ("kv_tokens", c_uint64), ("checkpoints", c_uint32),
                ("overflow", c_char_p), ("overflow_keep", c_uint32),
                ("kv_k", c_char_p), ("kv_v", c_char_p), ("max_bytes", c_uint64), ("ngram", c_uint32),
                ("draft", c_void_p), ("draft_tokens", c_uint32), ("embed", c_uint32), ("rope_scaling", c_char_p),
                ("rope_factor", c_double), ("rope_attention", c_double), ("rope_beta_fast", c_double),
                ("rope_beta_slow", c_double), ("rope_original", c_uint32)]


class PlanInfo(Record):
    _fields_ = [("size", c_uint32), ("context", c_uint32), ("batch", c_uint32), ("threads", c_uint32),
                ("weights", c_uint64), ("kv", c_uint64), ("activations", c_uint64), ("total", c_uint64),
                ("device", c_char * 64), ("layers", c_uint32), ("device_layers", c_uint32),
                ("device_embedding", c_uint32), ("device_weights", c_uint64), ("device_kv", c_uint64),
                ("device_activations", c_uint64), ("device_total", c_uint64), ("device_memory", c_uint64),
                ("border_bytes", c_uint64), ("device_staging", c_uint64), ("device_own", c_uint64),
                ("packed", c_uint64), ("threads_prefill", c_uint32), ("locked", c_uint64), ("sequences", c_uint32),
                ("kv_k", c_char_p), ("kv_v", c_char_p)]


class SessionInfo(Record):
    _fields_ = [("size", c_uint32), ("context", c_uint32), ("batch", c_uint32), ("max_logits", c_uint32),
                ("threads", c_uint32), ("trained_context", c_uint32), ("kv_bytes", c_uint64),
                ("activation_bytes", c_uint64), ("device_kv_bytes", c_uint64),
                ("device_activation_bytes", c_uint64), ("threads_prefill", c_uint32), ("sequences", c_uint32),
                ("kv_tokens", c_uint64), ("kv_free", c_uint64), ("overflow", c_char_p), ("overflow_keep", c_uint32),
                ("kv_k", c_char_p), ("kv_v", c_char_p),
                ("rope_scaling", c_char_p), ("rope_factor", c_double), ("rope_original", c_uint32)]


class SeqInfo(Record):
    """A sequence: its length, how many of its tokens wait to be evaluated again (pending), and of the last decode or sync
    how many tokens were known (cached), how many were evaluated again, why no more were known (miss), how many were
    dropped to make room (overflow="slide"), in all of this text (dropped_in_all), and how many had none (refused)."""

    _fields_ = [("size", c_uint32), ("length", c_uint32), ("pending", c_uint32), ("cached", c_uint32),
                ("again", c_uint32), ("miss", c_char_p), ("dropped", c_uint64), ("dropped_in_all", c_uint64),
                ("refused", c_uint64), ("why_again", c_char_p)]


class _Item(ctypes.Structure):
    _fields_ = [("sequence", c_uint32), ("ids", POINTER(c_int32)), ("count", c_size_t), ("logits_from", c_size_t)]


class Stats(Record):
    _fields_ = [("size", c_uint32), ("last_logits_hash", c_uint32), ("prefill_tokens", c_uint64),
                ("decode_tokens", c_uint64), ("prefill_seconds", c_double), ("decode_seconds", c_double),
                ("decode_bytes", c_uint64), ("border_bytes", c_uint64), ("border_seconds", c_double),
                ("decode_barriers", c_uint64), ("drafted", c_uint64), ("accepted", c_uint64)]


class LogitBias(ctypes.Structure):
    _fields_ = [("id", c_int32), ("bias", c_float)]


class LogProb(ctypes.Structure):
    """A token and the natural logarithm of its probability."""

    _fields_ = [("id", c_int32), ("logprob", c_float)]

    def __repr__(self) -> str:
        return f"LogProb(id={self.id}, logprob={self.logprob!r})"


class Sampler(Record):
    """How to choose a token, by the names of lq_sampler in libquant.h. All zero: always the most likely one. Here
    logit_bias is a dict from ids to biases, dry_breakers a list of strings, and mask a function of (logits, ids): a
    ctypes array of floats that it may write to, for the length of the call, and a list. With mirostat_tau the state is
    the attribute `mu`, which begins as 2 * mirostat_tau. And where a text that Session.step makes ends: stop (strings or
    bytes), max_tokens, ignore_eos."""

    _fields_ = [("size", c_uint32), ("temperature", c_float), ("top_k", c_uint32), ("top_p", c_float),
                ("min_p", c_float), ("seed", c_uint64), ("typical_p", c_float), ("xtc_probability", c_float),
                ("xtc_threshold", c_float), ("repeat_penalty", c_float), ("frequency_penalty", c_float),
                ("presence_penalty", c_float), ("penalty_last_n", c_uint32), ("dry_multiplier", c_float),
                ("dry_base", c_float), ("dry_allowed_length", c_uint32), ("dry_last_n", c_uint32),
                ("dry_breakers", POINTER(c_char_p)), ("n_dry_breakers", c_uint32), ("mirostat_tau", c_float),
                ("mirostat_eta", c_float), ("n_logit_bias", c_uint32), ("mirostat_mu", POINTER(c_float)),
                ("logit_bias", POINTER(LogitBias)), ("mask", _MASK), ("mask_user", c_void_p),
                ("stop", POINTER(c_char_p)), ("n_stop", c_uint32), ("max_tokens", c_uint32), ("ignore_eos", c_uint32)]

    def __init__(self, *, logit_bias: Optional[Dict[int, float]] = None, dry_breakers: Sequence[str] = (),
                 mask: Optional[Callable[[Any, List[int]], Any]] = None,
                 stop: Sequence[Union[str, bytes]] = (), **values: Any) -> None:
        super().__init__(**values)
        self._calls = _Calls()
        texts = [stop] if isinstance(stop, (str, bytes)) else list(stop)
        if texts:
            texts = [t.encode("utf-8") if isinstance(t, str) else bytes(t) for t in texts]
            if any(b"\0" in t for t in texts):
                raise ValueError("a stop string has a NUL byte")
            self.stop, self.n_stop = (c_char_p * len(texts))(*texts), len(texts)
        if logit_bias:
            self.logit_bias = (LogitBias * len(logit_bias))(*logit_bias.items())
            self.n_logit_bias = len(logit_bias)
        if dry_breakers:
            self.dry_breakers = (c_char_p * len(dry_breakers))(*[b.encode() for b in dry_breakers])
            self.n_dry_breakers = len(dry_breakers)
        if self.mirostat_tau and not self.mirostat_mu:
            self.mirostat_mu = ctypes.pointer(c_float(2 * self.mirostat_tau))
        if mask:
            function = mask

            def call(_user: Any, logits: Any, n: int, ids: Any, count: int) -> int:
                function((c_float * n).from_address(ctypes.addressof(logits.contents)), ids[:count] if count else [])
                return 0
            self.mask = _MASK(self._calls.guard(call))

    def as_dict(self) -> Dict[str, Any]:
        """The fields that are numbers, the biases, breakers and stop strings."""
        out = {k: v for k, v in super().as_dict().items() if isinstance(v, (int, float)) and not k.startswith("n_")}
        out["logit_bias"] = {b.id: b.bias for b in self.logit_bias[: self.n_logit_bias]}
        out["dry_breakers"] = [b.decode() for b in self.dry_breakers[: self.n_dry_breakers]]
        out["stop"] = list(self.stop[: self.n_stop])
        return out

    def _finish(self, status: int) -> None:
        thrown, self._calls.thrown = self._calls.thrown, None
        if thrown is not None:
            raise thrown
        _check(status)

    @property
    def mu(self) -> float:
        return self.mirostat_mu[0]

    @mu.setter
    def mu(self, value: float) -> None:
        self.mirostat_mu[0] = value


class _StepItem(Record):
    _fields_ = [("size", c_uint32), ("sequence", c_uint32), ("sampler", POINTER(Sampler)), ("end", c_uint32),
                ("stop", c_uint32), ("ids", POINTER(c_int32)), ("n", c_size_t), ("text", c_void_p), ("bytes", c_size_t),
                ("made", c_uint64), ("made_bytes", c_uint64), ("row", c_uint32)]


class Step(NamedTuple):
    """What Session.step made: tokens, the bytes of text that are certain now, why the text ended ("" = it goes on, "eos", "stop",
    "length", "context"), and the number of the stop string."""

    ids: List[int]
    text: bytes
    end: str
    stop: int


class _EvalOptions(Record):
    _fields_ = [("size", c_uint32), ("window", c_uint32), ("max_tokens", c_uint64), ("score_all", c_uint32),
                ("progress", _PROGRESS), ("user", c_void_p)]


class _EmbedOptions(Record):
    _fields_ = [("size", c_uint32), ("pooling", c_uint32), ("no_normalize", c_uint32)]


class EvalResult(Record):
    _fields_ = [("size", c_uint32), ("window", c_uint32), ("tokens", c_uint64), ("evaluated", c_uint64)] + [
        (name, c_double) for name in ("nll", "ppl", "ppl_se", "ppl_ratio", "kld_mean", "kld_se", "kld_median",
                                      "kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max", "same_top", "dp_mean",
                                      "dp_rms")
    ]


class _CalibrateOptions(Record):
    _fields_ = [("size", c_uint32), ("window", c_uint32), ("max_tokens", c_uint64), ("force", c_uint32),
                ("dataset", c_char_p), ("progress", _PROGRESS), ("user", c_void_p), ("hessians", c_uint32),
                ("scheme", c_char_p), ("max_ram", c_uint64), ("recipe", c_char_p)]


class CalibrateResult(Record):
    _fields_ = [("size", c_uint32), ("window", c_uint32), ("chunks", c_uint32), ("entries", c_uint32),
                ("tokens", c_uint64), ("bytes", c_uint64), ("seconds", c_double)]


# ---------------------------------------------------------------------------------------------- the library

# name: result, arguments. Handles are plain pointers; out-parameters are passed by byref.
_S, _P, _SZ = c_int32, c_void_p, POINTER(c_size_t)
_FUNCTIONS: Dict[str, Tuple[Any, List[Any]]] = {
    "lq_version": (c_uint32, []),
    "lq_version_string": (c_char_p, []),
    "lq_status_name": (c_char_p, [_S]),
    "lq_error_detail": (c_char_p, []),
    "lq_open": (_S, [POINTER(_Options), POINTER(_P)]),
    "lq_close": (None, [_P]),
    "lq_device_count": (c_uint32, [_P]),
    "lq_device_info_get": (_S, [_P, c_uint32, POINTER(DeviceInfo)]),
    "lq_format_count": (c_uint32, []),
    "lq_format_info_get": (_S, [c_uint32, POINTER(FormatInfo)]),
    "lq_format_find": (_S, [c_char_p, POINTER(c_uint32)]),
    "lq_scheme_count": (c_uint32, []),
    "lq_scheme_name": (c_char_p, [c_uint32, POINTER(c_char_p)]),
    "lq_model_open": (_S, [_P, c_char_p, POINTER(_ModelOptions), POINTER(_P)]),
    "lq_model_close": (None, [_P]),
    "lq_model_info_get": (_S, [_P, POINTER(ModelInfo)]),
    "lq_model_meta": (_S, [_P, c_char_p, c_uint32, POINTER(c_char_p), c_void_p, _SZ]),
    "lq_model_tensor": (_S, [_P, c_uint32, POINTER(TensorInfo)]),
    "lq_model_tensor_row": (_S, [_P, c_uint32, c_uint64, POINTER(c_float)]),
    "lq_model_plan": (_S, [_P, POINTER(_SessionOptions), POINTER(PlanInfo)]),
    "lq_quantize": (_S, [_P, c_char_p, c_char_p, POINTER(_QuantizeOptions), POINTER(QuantizeResult)]),
    "lq_session_open": (_S, [_P, POINTER(_SessionOptions), POINTER(_P)]),
    "lq_session_close": (None, [_P]),
    "lq_session_cancel": (None, [_P]),
    "lq_session_info_get": (_S, [_P, POINTER(SessionInfo)]),
    "lq_session_stats": (_S, [_P, POINTER(Stats)]),
    "lq_seq_length": (c_uint32, [_P, c_uint32]),
    "lq_seq_truncate": (_S, [_P, c_uint32, c_uint32]),
    "lq_seq_fork": (_S, [_P, c_uint32, c_uint32]),
    "lq_seq_save": (_S, [_P, c_uint32, _WRITE, _P]),
    "lq_seq_load": (_S, [_P, c_uint32, _READ, _P]),
    "lq_seq_info_get": (_S, [_P, c_uint32, POINTER(SeqInfo)]),
    "lq_tokenize": (_S, [_P, c_char_p, c_size_t, c_uint32, POINTER(c_int32), _SZ]),
    "lq_detokenize": (_S, [_P, POINTER(c_int32), c_size_t, c_uint32, c_void_p, _SZ]),
    "lq_token_find": (c_int32, [_P, c_char_p]),
    "lq_decode": (_S, [_P, POINTER(_Item), c_size_t]),
    "lq_sync": (_S, [_P, c_uint32, POINTER(c_int32), c_size_t, c_size_t]),
    "lq_logits": (_S, [_P, c_uint32, POINTER(POINTER(c_float))]),
    "lq_sample": (_S, [_P, c_uint32, POINTER(Sampler), POINTER(c_int32)]),
    "lq_sample_logits": (_S, [_P, POINTER(c_float), c_size_t, POINTER(Sampler), POINTER(c_int32), c_size_t, c_uint64,
                              POINTER(c_int32)]),
    "lq_logprobs": (_S, [_P, c_uint32, c_int32, POINTER(c_float), POINTER(LogProb), c_size_t]),
    "lq_step": (_S, [_P, POINTER(_StepItem), c_size_t]),
    "lq_embed": (_S, [_P, POINTER(_Item), c_size_t, POINTER(_EmbedOptions), POINTER(c_float)]),
    "lq_evaluate": (_S, [_P, POINTER(c_int32), c_size_t, POINTER(_EvalOptions), POINTER(EvalResult)]),
    "lq_compare": (_S, [_P, POINTER(_P), c_size_t, POINTER(c_int32), c_size_t, POINTER(_EvalOptions),
                        POINTER(EvalResult), POINTER(EvalResult)]),
    "lq_calibrate": (_S, [_P, POINTER(c_int32), c_size_t, c_char_p, POINTER(_CalibrateOptions),
                          POINTER(CalibrateResult)]),
}

_POOLINGS = ("mean", "last", "first")
_ENDS = ("", "eos", "stop", "length", "context")

_library: Optional[ctypes.CDLL] = None


def _candidates() -> Iterator[str]:
    here = os.path.dirname(os.path.abspath(__file__))
    names = (f"libquant.so.{_ABI}", "libquant.so")
    # beside this file; tools/bindings of a checkout; PREFIX/share/libquant/python of an installation
    for folder in (here, os.path.join(here, "../../build"), os.path.join(here, "../../../lib")):
        for name in names:
            path = os.path.normpath(os.path.join(folder, name))
            if os.path.exists(path):
                yield path
    found = ctypes.util.find_library("quant")
    if found:
        yield found


def load(path: Optional[Path] = None) -> ctypes.CDLL:
    """Load the shared library, from `path` or where the text at the top says. Called by everything that needs it; call
    it yourself, first, to choose the file. Returns the ctypes library, whose lq_* functions are declared."""
    global _library
    if _library is not None and path is None:
        return _library
    chosen = os.fspath(path) if path is not None else os.environ.get("LIBQUANT") or next(_candidates(), None)
    if chosen is None:
        raise OSError("libquant.so was not found: install it, set LIBQUANT to its path, or call libquant.load(path)")
    lib = ctypes.CDLL(chosen)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if lib.lq_version() // 10000 != int(_ABI):
        raise OSError(f"{chosen} is libquant {lib.lq_version_string().decode()}; this file is for version {_ABI}")
    _library = lib
    return lib


def _check(status: int) -> None:
    if status != OK:
        lib = load()
        detail = lib.lq_error_detail().decode("utf-8", "replace")
        raise _ERRORS.get(status, Error)(status, lib.lq_status_name(status).decode(), detail)


def _text(value: Optional[Union[str, bytes]]) -> Optional[bytes]:
    return value.encode() if isinstance(value, str) else value


def _path(path: Path) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path with a NUL byte")
    return raw


def _adapters(loras: Optional[Dict[Path, float]]) -> Dict[str, Any]:
    """Fields of options that name adapters."""
    if not loras:
        return {}
    n = len(loras)
    return {"loras": (c_char_p * n)(*(_path(p) for p in loras)), "lora_scales": (c_float * n)(*loras.values()), "n_loras": n}


def _ids(ids: Sequence[int]) -> "ctypes.Array[c_int32]":
    return (c_int32 * len(ids))(*ids)


def _bytes(guess: int, call: Callable[[Any, Any], int]) -> bytes:
    """Variable output: ask with room for `guess` bytes, and again with what was needed."""
    capacity = guess
    while True:
        buffer, n = ctypes.create_string_buffer(max(capacity, 1)), c_size_t(capacity)
        status = call(ctypes.cast(buffer, c_void_p), byref(n))
        if status == E_ARG and n.value > capacity:
            capacity = n.value
            continue
        _check(status)
        return buffer.raw[: n.value]


class _Calls:
    """The callbacks of one call: keeps them alive, carries an exception past the library."""

    def __init__(self, progress: Optional[Progress] = None,
                 report: Optional[Callable[[TensorReport], None]] = None) -> None:
        self.thrown: Optional[BaseException] = None

        def on_progress(_user: Any, done: int, total: int, what: Optional[bytes]) -> int:
            text = (what or b"").decode("utf-8", "replace")
            return 1 if progress is not None and progress(done, total, text) else 0

        def on_report(_user: Any, tensor: Any) -> int:
            if report is not None:
                report(tensor.contents)
            return 0

        self.progress, self.report = _PROGRESS(self.guard(on_progress)), _REPORT(self.guard(on_report))

    def guard(self, call: Callable[..., int]) -> Callable[..., int]:
        """`call` for C: 1 where it raises, and from then on."""
        def guarded(*arguments: Any) -> int:
            if self.thrown is not None:
                return 1
            try:
                return call(*arguments)
            except BaseException as e:  # KeyboardInterrupt too
                self.thrown = e
                return 1
        return guarded

    def finish(self, status: int) -> None:
        if self.thrown is not None:
            raise self.thrown
        _check(status)


def version() -> str:
    """The library's version, "0.1.0"."""
    return str(load().lq_version_string().decode())


def schemes() -> Dict[str, str]:
    """The quantization schemes: names and descriptions."""
    lib, out = load(), {}
    for i in range(lib.lq_scheme_count()):
        description = c_char_p()
        name = lib.lq_scheme_name(i, byref(description))
        out[name.decode()] = (description.value or b"").decode()
    return out


def formats() -> List[FormatInfo]:
    """The formats of tensors."""
    lib, out = load(), []
    for i in range(lib.lq_format_count()):
        info = FormatInfo()
        _check(lib.lq_format_info_get(i, byref(info)))
        out.append(info)
    return out


# ---------------------------------------------------------------------------------------------- handles

_H = TypeVar("_H", bound="_Handle")


class _Handle:
    """A handle of the library: closes what depends on it first, then itself, once."""

    _close_name = ""

    def __init__(self, pointer: int, parent: Optional["_Handle"]) -> None:
        self._pointer: Optional[int] = pointer
        self._parent = parent  # is kept alive
        self._children: "weakref.WeakSet[_Handle]" = weakref.WeakSet()
        if parent is not None:
            parent._children.add(self)

    @property
    def _handle(self) -> int:
        if self._pointer is None:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._pointer

    def close(self) -> None:
        """Free it now. Also at the end of a `with`, and when nothing refers to it any more."""
        if getattr(self, "_pointer", None) is None:
            return
        for child in list(self._children):
            child.close()
        pointer, self._pointer = self._pointer, None
        getattr(load(), self._close_name)(pointer)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the interpreter is going away
            pass


class Context(_Handle):
    """The devices and defaults that models and sessions share."""

    _close_name = "lq_close"

    def __init__(self, threads: int = 0, isa: Optional[str] = None, log: Optional[Log] = None) -> None:
        """`log(level, message)`: level 0 error, 1 warning, 2 info, 3 debug; may come from any thread."""
        self._log = _LOG()
        if log is not None:
            hook = log
            self._log = _LOG(lambda _user, level, message: hook(level, message.decode("utf-8", "replace")))
        options, out = _Options(threads=threads, isa=_text(isa), log=self._log), c_void_p()
        _check(load().lq_open(byref(options), byref(out)))
        super().__init__(out.value or 0, None)

    @property
    def devices(self) -> List[DeviceInfo]:
        """Where models can run: the processor, then the others, by the names that `open` takes. A device that is there
        but lacks what every kernel needs, or that failed, is left out; `lq info --devices` says why."""
        out = []
        for i in range(load().lq_device_count(self._handle)):
            info = DeviceInfo()
            status = load().lq_device_info_get(self._handle, i, byref(info))
            if status not in (E_UNSUPPORTED, E_DEVICE):
                _check(status)
                out.append(info)
        return out

    def open(self, path: Path, check_tensors: bool = False, no_mmap: bool = False, device: Optional[str] = None,
             gpu_layers: int = 0, plan_only: bool = False, no_pack: bool = False,
             load_as: Optional[str] = None, pack_at_open: bool = False,
             loras: Optional[Dict[Path, float]] = None) -> "Model":
        """Open a GGUF file or a Hugging Face directory. `device`, a name of `devices`, runs the last `gpu_layers` layers
        (0 = all) and the output, and holds their weights; None = the processor runs it all. With `plan_only` nothing is
        written to the device and no session opens: for Model.plan. With `load_as` ("nf4", "int8", "i4_g128", ...) the float
        matrices of the layers are quantized while the model opens. With `pack_at_open` the first token waits for all
        weights to be packed, instead of the passes after it for a part of them. `loras`: adapters to run with, unmerged, and
        the scale of each."""
        options, out = _ModelOptions(check_tensors=check_tensors, no_mmap=no_mmap, device=_text(device),
                                     gpu_layers=gpu_layers, plan_only=plan_only, no_pack=no_pack,
                                     load_as=_text(load_as), pack_at_open=pack_at_open, **_adapters(loras)), c_void_p()
        _check(load().lq_model_open(self._handle, _path(path), byref(options), byref(out)))
        return Model(out.value or 0, self)

    def quantize(self, src: Path, dst: Path, scheme: Optional[str] = None, threads: int = 0, force: bool = False,
                 requantize: bool = False, dry_run: bool = False, importance: Optional[Path] = None,
                 progress: Optional[Progress] = None,
                 report: Optional[Callable[[TensorReport], None]] = None,
                 recipe: Optional[Path] = None, loras: Optional[Dict[Path, float]] = None) -> QuantizeResult:
        """Write the model at `src` to the GGUF file `dst`, by a scheme ("q4_k_m") or by a recipe in a file. `importance` is a
        file that Session.calibrate or another engine made; `loras`: adapters to merge, with the scale of each. `report` gets a TensorReport after each tensor, valid during the call alone."""
        calls, result = _Calls(progress, report), QuantizeResult()
        options = _QuantizeOptions(scheme=_text(scheme), threads=threads, force=force, requantize=requantize,
                                   dry_run=dry_run, progress=calls.progress, report=calls.report,
                                   importance=None if importance is None else _path(importance),
                                   recipe=None if recipe is None else _path(recipe), **_adapters(loras))
        calls.finish(load().lq_quantize(self._handle, _path(src), _path(dst), byref(options), byref(result)))
        return result


class Model(_Handle):
    """An open model; immutable. Made by Context.open."""

    _close_name = "lq_model_close"

    def __init__(self, pointer: int, context: Context) -> None:
        super().__init__(pointer, context)
        self.info = ModelInfo()
        _check(load().lq_model_info_get(self._handle, byref(self.info)))

    def meta(self) -> Dict[str, str]:
        """All metadata as text."""
        out: Dict[str, str] = {}
        lib, handle, name = load(), self._handle, c_char_p()
        for i in range(1 << 32):
            n = c_size_t(0)
            if lib.lq_model_meta(handle, None, i, None, None, byref(n)) == E_ARG and n.value == 0:
                break
            text = _bytes(n.value, lambda data, n: lib.lq_model_meta(handle, None, i, byref(name), data, n))
            out[(name.value or b"").decode("utf-8", "replace")] = text[:-1].decode("utf-8", "replace")
        return out

    def tensors(self) -> List[TensorInfo]:
        """All tensors in file order. Their names are borrowed: do not use a TensorInfo after the model is closed."""
        out = []
        for i in range(self.info.tensors):
            info = TensorInfo()
            _check(load().lq_model_tensor(self._handle, i, byref(info)))
            out.append(info)
        return out

    def tensor_row(self, index: int, row: int) -> List[float]:
        """A row of a tensor as floats."""
        info = TensorInfo()
        _check(load().lq_model_tensor(self._handle, index, byref(info)))
        out = (c_float * info.shape[0])()
        _check(load().lq_model_tensor_row(self._handle, index, row, out))
        return list(out)

    def tokenize(self, text: Union[str, bytes], bos: bool = True, special: bool = False) -> List[int]:
        """`bos`: put BOS first where the model wants it. `special`: text that spells a special token becomes it."""
        raw = text.encode() if isinstance(text, str) else text
        flags = (1 if bos else 0) | (2 if special else 0)
        capacity = len(raw) + 8
        while True:
            out, n = (c_int32 * capacity)(), c_size_t(capacity)
            status = load().lq_tokenize(self._handle, raw, len(raw), flags, out, byref(n))
            if status == E_ARG and n.value > capacity:
                capacity = n.value
                continue
            _check(status)
            return out[: n.value]

    def detokenize_bytes(self, ids: Sequence[int], special: bool = False, middle: bool = False,
                         stream: bool = False) -> bytes:
        """The bytes of tokens; the flags are LQ_DETOKENIZE_SPECIAL, _MIDDLE and _STREAM."""
        flags = (1 if special else 0) | (2 if middle else 0) | (4 if stream else 0)
        array = _ids(ids)
        return _bytes(len(ids) * 8 + 16,
                      lambda data, n: load().lq_detokenize(self._handle, array, len(ids), flags, data, n))

    def detokenize(self, ids: Sequence[int], special: bool = False, middle: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.detokenize_bytes(ids, special, middle).decode("utf-8", "replace")

    def token(self, piece: str) -> Optional[int]:
        """The id of a token by its exact spelling."""
        found = load().lq_token_find(self._handle, piece.encode())
        return None if found < 0 else found

    def plan(self, **options: Any) -> PlanInfo:
        """The bytes that a session with these options needs, of the processor's memory and of the model's device."""
        plan = PlanInfo()
        _check(load().lq_model_plan(self._handle, byref(_session_options(options)), byref(plan)))
        return plan

    def session(self, **options: Any) -> "Session":
        """Open a session. Options: context, batch, max_logits, threads, activations, sequences, kv_tokens, overflow
        ("error", "stop", "slide"), overflow_keep, max_bytes, kv_k and kv_v ("f16", "q8_0", ...), ngram, draft (a Model),
        draft_tokens, embed, rope_scaling, rope_factor and the others of lq_session_options."""
        out = c_void_p()
        _check(load().lq_session_open(self._handle, byref(_session_options(options)), byref(out)))
        return Session(out.value or 0, self, options.get("draft"))


def _session_options(options: Dict[str, Any]) -> _SessionOptions:
    return _SessionOptions(**{k: _text(v) if isinstance(v, str) else v._handle if isinstance(v, Model) else v
                              for k, v in options.items()})


class Session(_Handle):
    """Sequences over a model: their tokens, keys and values, and logits. Made by Model.session."""

    _close_name = "lq_session_close"

    def __init__(self, pointer: int, model: Model, draft: Optional[Model] = None) -> None:
        super().__init__(pointer, model)
        self.model = model
        self._draft = draft
        if draft is not None:
            draft._children.add(self)

    def __len__(self) -> int:
        """Tokens in sequence 0."""
        return self.length()

    def length(self, sequence: int = 0) -> int:
        """Tokens in a sequence."""
        return int(load().lq_seq_length(self._handle, sequence))

    def __bool__(self) -> bool:
        return True  # an empty session is one too

    @property
    def info(self) -> SessionInfo:
        info = SessionInfo()
        _check(load().lq_session_info_get(self._handle, byref(info)))
        return info

    @property
    def stats(self) -> Stats:
        stats = Stats()
        _check(load().lq_session_stats(self._handle, byref(stats)))
        return stats

    def sequence(self, sequence: int = 0) -> SeqInfo:
        """Its length, and what the last call knew of its tokens."""
        info = SeqInfo()
        _check(load().lq_seq_info_get(self._handle, sequence, byref(info)))
        return info

    def truncate(self, length: int, sequence: int = 0) -> None:
        _check(load().lq_seq_truncate(self._handle, sequence, length))

    def fork(self, source: int, to: int) -> None:
        """Make sequence `to` the same as `source`; nothing is copied."""
        _check(load().lq_seq_fork(self._handle, source, to))

    def cancel(self) -> None:
        """End the running call, or else the next one, with Cancelled. From any thread or a signal handler."""
        load().lq_session_cancel(self._handle)

    def save(self, file: BinaryIO, sequence: int = 0) -> None:
        """Write a sequence with its keys and values to a binary file."""
        calls = _Calls()

        def write(_user: Any, data: int, n: int) -> int:
            rest = memoryview(ctypes.string_at(data, n))
            while rest:
                written = file.write(rest)
                if not written:
                    return 1
                rest = rest[written:]
            return 0
        calls.finish(load().lq_seq_save(self._handle, sequence, _WRITE(calls.guard(write)), None))

    def load(self, file: BinaryIO, sequence: int = 0) -> None:
        """Read a sequence that `save` wrote, in the place of what this one was."""
        calls = _Calls()

        def read(_user: Any, data: int, n: int) -> int:
            while n:
                got = file.read(n)
                if not got:
                    return 1
                ctypes.memmove(data, got, len(got))
                data, n = data + len(got), n - len(got)
            return 0
        calls.finish(load().lq_seq_load(self._handle, sequence, _READ(calls.guard(read)), None))

    def decode(self, ids: Sequence[int], logits_from: Optional[int] = None, sequence: int = 0) -> None:
        """Append tokens and evaluate them; logits are kept from index `logits_from` on (default: for the last)."""
        n = len(ids)
        item = _Item(sequence, _ids(ids), n, max(n - 1, 0) if logits_from is None else logits_from)
        _check(load().lq_decode(self._handle, byref(item), 1))

    def decode_all(self, items: Dict[int, Sequence[int]]) -> None:
        """Append tokens to several sequences at once; the last token of each keeps its logits, a row each, in order."""
        arrays = [_Item(seq, _ids(ids), len(ids), max(len(ids) - 1, 0)) for seq, ids in items.items()]
        _check(load().lq_decode(self._handle, (_Item * len(arrays))(*arrays), len(arrays)))

    def sync(self, ids: Sequence[int], sequence: int = 0) -> None:
        """Make a sequence these tokens and evaluate only what is not known; logits are kept for the last one."""
        _check(load().lq_sync(self._handle, sequence, _ids(ids), len(ids), max(len(ids) - 1, 0)))

    def logits(self, row: int = 0) -> List[float]:
        """A row of the logits that the last decode kept."""
        out = POINTER(c_float)()
        _check(load().lq_logits(self._handle, row, byref(out)))
        return out[: self.model.info.vocabulary]

    def sample(self, sampler: Optional[Sampler] = None, row: int = -1) -> int:
        """Choose a token from a row of logits (-1: the last); without a sampler the most likely one."""
        out, how = c_int32(), sampler if sampler is not None else Sampler()
        how._finish(load().lq_sample(self._handle, row & 0xFFFFFFFF, byref(how), byref(out)))
        return out.value

    def logprobs(self, n: int, row: int = -1) -> List[LogProb]:
        """The n most likely tokens of a row of logits (-1: the last), by the model alone, in descending order."""
        out = (LogProb * n)()
        _check(load().lq_logprobs(self._handle, row & 0xFFFFFFFF, -1, None, out, n))
        return list(out)

    def logprob(self, token: int, row: int = -1) -> float:
        """The natural logarithm of the probability that the model gives to a token."""
        out = c_float()
        _check(load().lq_logprobs(self._handle, row & 0xFFFFFFFF, token, byref(out), None, 0))
        return out.value

    def step(self, sampler: Optional[Sampler] = None, sequence: int = 0) -> Step:
        """Let a sequence go on by a token, or by several: choose, append."""
        how = sampler if sampler is not None else Sampler()
        item = _StepItem(sequence=sequence, sampler=ctypes.pointer(how))
        how._finish(load().lq_step(self._handle, byref(item), 1))
        return Step(item.ids[: item.n], ctypes.string_at(item.text, item.bytes), _ENDS[item.end], item.stop)

    def steps(self, sampler: Optional[Sampler] = None, sequence: int = 0) -> Iterator[Step]:
        """The steps of a text until it ends."""
        while True:
            step = self.step(sampler, sequence)
            yield step
            if step.end:
                return

    def tokens(self, max_tokens: Optional[int] = None, sampler: Optional[Sampler] = None,
               stop_at_eos: bool = True) -> Iterator[int]:
        """Continue sequence 0 token by token. Ends at the end-of-text token, after `max_tokens`, where the sampler says, or
        when the context is full (but with overflow="slide")."""
        of = sampler if sampler is not None else Sampler()  # whose are what the copy points to
        how = Sampler.from_buffer_copy(of)
        how._calls = of._calls
        if max_tokens is not None:
            if max_tokens < 1:
                return
            how.max_tokens = max_tokens
        how.ignore_eos = how.ignore_eos or not stop_at_eos
        for step in self.steps(how):
            yield from step.ids

    def generate(self, prompt: Union[str, bytes, Sequence[int]], max_tokens: Optional[int] = None, *,
                 special: bool = False, stop_at_eos: bool = True, **sampler: Any) -> Iterator[str]:
        """Evaluate a prompt (text, or ids) and yield the continuation in pieces of whole characters. Further keywords
        are those of Sampler: temperature, top_k, top_p, min_p, seed, stop and the others."""
        how = Sampler(ignore_eos=not stop_at_eos, **sampler)
        if isinstance(prompt, (str, bytes)):
            prompt = self.model.tokenize(prompt, bos=len(self) == 0, special=special)
        self.decode(prompt)
        if max_tokens is not None:
            if max_tokens < 1:
                return
            how.max_tokens = max_tokens
        for step in self.steps(how):
            if step.text:
                yield step.text.decode("utf-8", "replace")

    def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean", normalize: bool = True) -> List[List[float]]:
        """A vector for each text of ids: the "mean" of its hidden rows, or the "last" or "first" one. The session was opened
        with embed=1 and as many sequences as there are texts."""
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling '{pooling}' is not one of: {', '.join(_POOLINGS)}")
        n, width = len(texts), self.model.info.embedding
        items = (_Item * n)(*[_Item(i, _ids(t), len(t), 0) for i, t in enumerate(texts)])
        options, out = _EmbedOptions(pooling=_POOLINGS.index(pooling), no_normalize=not normalize), (c_float * (n * width))()
        _check(load().lq_embed(self._handle, items, n, byref(options), out))
        return [out[i * width: (i + 1) * width] for i in range(n)]

    def evaluate(self, ids: Sequence[int], window: int = 0, max_tokens: int = 0, score_all: bool = False,
                 progress: Optional[Progress] = None) -> EvalResult:
        """Perplexity of a text of ids. The session needs max_logits of at least half a window."""
        calls, result = _Calls(progress), EvalResult()
        options = _EvalOptions(window=window, max_tokens=max_tokens, score_all=score_all, progress=calls.progress)
        calls.finish(load().lq_evaluate(self._handle, _ids(ids), len(ids), byref(options), byref(result)))
        return result

    def compare(self, candidates: Sequence["Session"], ids: Sequence[int], window: int = 0, max_tokens: int = 0,
                score_all: bool = False, progress: Optional[Progress] = None) -> Tuple[EvalResult, List[EvalResult]]:
        """Score candidates against this session over the same text. Returns its own result and one per candidate."""
        calls, own, n = _Calls(progress), EvalResult(), len(candidates)
        options = _EvalOptions(window=window, max_tokens=max_tokens, score_all=score_all, progress=calls.progress)
        handles, results = (c_void_p * n)(*[c._handle for c in candidates]), (EvalResult * n)()
        for r in results:
            r.size = ctypes.sizeof(EvalResult)
        calls.finish(load().lq_compare(self._handle, handles, n, _ids(ids), len(ids), byref(options), byref(own),
                                       results))
        return own, list(results)

    def calibrate(self, ids: Sequence[int], dst: Path, window: int = 0, max_tokens: int = 0, force: bool = False,
                  dataset: Optional[str] = None, progress: Optional[Progress] = None, hessians: bool = False,
                  scheme: Optional[str] = None, max_ram: int = 0, recipe: Optional[Path] = None) -> CalibrateResult:
        """Write what a text of ids says about the importance of weights to the file `dst`, for Context.quantize; with
        `hessians`, which `scheme` or `recipe` and `max_ram` go with, also what the quantizer gptq needs."""
        calls, result = _Calls(progress), CalibrateResult()
        options = _CalibrateOptions(window=window, max_tokens=max_tokens, force=force, dataset=_text(dataset),
                                    progress=calls.progress, hessians=hessians, scheme=_text(scheme), max_ram=max_ram,
                                    recipe=_path(recipe) if recipe is not None else None)
        calls.finish(load().lq_calibrate(self._handle, _ids(ids), len(ids), _path(dst), byref(options), byref(result)))
        return result


def sample_logits(logits: Sequence[float], sampler: Optional[Sampler] = None, position: int = 0,
                  ids: Sequence[int] = (), model: Optional[Model] = None) -> int:
    """Choose a token from any row of logits, after the tokens `ids`, with the draw of `position`. A sampler with
    dry_breakers needs a model."""
    row, out, how = (c_float * len(logits))(*logits), c_int32(), sampler if sampler is not None else Sampler()
    how._finish(load().lq_sample_logits(model._handle if model else None, row, len(logits), byref(how), _ids(ids),
                                        len(ids), position, byref(out)))
    return out.value
