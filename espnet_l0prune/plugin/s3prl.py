"""Self-supervised front ends are built without the published model where it was cut.

ESPnet has s3prl build them from that model's file, which it downloads, and then replaces
the weights by those of a training. The file also says how large the model is, in part by
a line of Python that s3prl evaluates, and that is only let through here as a list.
"""

import ast
import copy
import dataclasses
import difflib
import importlib.util
import reprlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from espnet_l0prune.core.files import save
from espnet_l0prune.networks.s3prl import freeze_unused_, upstream_of
from espnet_l0prune.plugin.upstream import WHERE, UpstreamNetwork

LAYERS = "conv_feature_layers"
MOST = 64  # convolutions
# Where s3prl builds each kind of model, and by which name
BUILDERS = {
    "hubert": ("hubert.convert", "HubertModel"),
    "wav2vec2": ("wav2vec2.convert", "Wav2Vec2Model"),
    "wavlm": ("wavlm.expert", "WavLM"),
}
SELECTS = ("feature_selection",)  # further options that do not say where a file is from
SIZE_NOTHING = ("max_positions", "min_params_to_wrap")  # and are large
TASK = ("normalize", "sample_rate", "label_rate")  # what a model needs of its task


class S3prlNetwork(UpstreamNetwork):
    """A `S3prlNetwork` is our front end `l0_s3prl`; see `UpstreamNetwork`.

    Raises:
        ValueError: a kind of model that s3prl does not know, or sizes that are missing
    """

    def __init__(self, **conf: Any):
        if importlib.util.find_spec("s3prl") is None:
            raise ImportError(
                "frontend: l0_s3prl needs the package s3prl: pip install espnet-s3prl"
            )
        super().__init__(**conf)
        freeze_unused_(self)
        expert, found = self.upstream.upstream, self.upstream_config
        if found:
            vars(expert.model).pop("load_state_dict", None)
        if found.get("kind") == "wav2vec2":
            found["task_cfg"] = {"normalize": expert.wav_normalize}

    @staticmethod
    @contextmanager
    def loading(
        options: dict[str, Any],
        config: Mapping[str, Any] | None,
        found: dict[str, Any],
    ) -> Iterator[None]:
        with ExitStack() as loading:
            if config is None:
                _check_upstream(options.get("upstream"))
            else:
                options |= loading.enter_context(_standing_in(config, options))
            loading.enter_context(reading_upstreams(found, whole=config is None))
            yield

    def __deepcopy__(self, memo: dict) -> Any:
        """Copy the network, and let s3prl read the hidden states of the copy."""
        for module in self.modules():
            if hasattr(module, "weight_g"):  # its weight is computed in each forward
                module.weight = module.weight.detach()
        hooks = getattr(self.upstream.upstream, "hooks", [])
        handlers = [hook.handler for hook in hooks]
        numbers = {handler.id for handler in handlers}
        for hook in hooks:
            hook.handler = None  # those of blocks that were cut cannot be copied
        again = type(self).__new__(type(self))
        memo[id(self)] = again
        again.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for hook, handler in zip(hooks, handlers, strict=True):
            hook.handler = handler
        expert = again.upstream.upstream
        if (model := upstream_of(again)) is not None:
            for module in (model.encoder, *model.encoder.layers):
                for number in numbers & {*module._forward_hooks}:
                    del module._forward_hooks[number]
            for hook in expert.hooks:
                expert._register_hook_handler(hook)
        return again

    def portable_conf(self) -> dict[str, object]:
        conf = super().portable_conf()
        return {**conf, "download_dir": None} if conf else {}


def _check_upstream(name: object) -> None:
    """Raise ValueError for a model that s3prl does not know by its name."""
    known = importlib.import_module("s3prl.nn").S3PRLUpstream.available_names()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "such as wavlm_large"
        raise ValueError(
            f"frontend_conf: upstream in its frontend_conf is {name!r}; expected a model "
            f"that s3prl knows by its name: {hint}"
        )


@contextmanager
def reading_upstreams(
    found: dict[str, Any] | None = None, whole: bool = True
) -> Iterator[None]:
    """Check what s3prl builds a model of within a `with` block.

    Args:
        found: a mapping that gets what is needed to build the model again
        whole: whether the model's file has the weights

    Raises:
        ValueError: a file that has code where the sizes of convolutions should be
    """
    with ExitStack() as after:
        for kind, (place, name) in BUILDERS.items():
            module = importlib.import_module(f"s3prl.upstream.{place}")
            model_type = getattr(module, name)
            build = _builder(kind, model_type, found, whole)
            after.callback(setattr, module, name, model_type)
            setattr(module, name, build)
        yield


def _builder(kind: str, model_type: Any, found: dict | None, whole: bool) -> Any:
    def build(cfg: Any, *more: Any) -> nn.Module:
        layers = convolutions(getattr(cfg, LAYERS))
        setattr(cfg, LAYERS, str([tuple(layer) for layer in layers]))
        model = model_type(cfg, *more)
        if found is not None:
            found.update(kind=kind, model_cfg=_changed(cfg) | {LAYERS: layers})
            if more:  # HuBERT's task, and its dictionaries
                found["task_cfg"] = {name: getattr(more[0], name) for name in TASK}
                found["classes"] = [None if d is None else len(d) for d in more[1]]
        if not whole:
            model.load_state_dict = lambda state: None  # the file has no weights
        return model

    return build


def _changed(cfg: Any) -> dict[str, Any]:
    """Return the options of a model that are not s3prl's defaults, as plain data.

    A file may have options that s3prl does not know.
    """
    if dataclasses.is_dataclass(cfg):
        defaults = {field.name: field.default for field in dataclasses.fields(cfg)}
    else:
        defaults = vars(type(cfg)())
    changed = {k: v for k, v in vars(cfg).items() if v != defaults.get(k, v)}
    for name in SIZE_NOTHING:
        changed.pop(name, None)
    return {k: [*v] if isinstance(v, (list, tuple)) else v for k, v in changed.items()}


@contextmanager
def _standing_in(config: Mapping[str, Any], options: dict) -> Iterator[dict]:
    """Yield options by which s3prl builds a model from a file without weights.

    Args:
        config: what `S3prlNetwork` has found for that model
        options: ESPnet's options of the front end, in `frontend_conf` once more
    """
    kind, model_cfg = str(config.get("kind")), config.get("model_cfg", {})
    task_cfg, classes = config.get("task_cfg", {}), config.get("classes", [])
    plain = all(isinstance(part, dict) for part in (model_cfg, task_cfg))
    well = plain and isinstance(classes, list) and kind in BUILDERS
    if not well or LAYERS not in model_cfg:
        raise ValueError(
            f"{WHERE} is {reprlib.repr(dict(config))}; expected what `espnet-l0prune "
            f"cut` wrote: kind ({', '.join(BUILDERS)}) and model_cfg, at least"
        )
    model_cfg = model_cfg | {LAYERS: str(model_cfg[LAYERS])}
    content = {
        "task_cfg": {"normalize": False, **task_cfg},
        "model_cfg": model_cfg,
        **{"cfg": model_cfg, "model_weight": {}, "model": {}},
        "dictionaries_symbols": [None if n is None else [*range(n)] for n in classes],
    }
    extra = {k: v for k, v in (options.get("extra_conf") or {}).items() if k in SELECTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        save(content, file)
        yield {"upstream": f"{kind}_local", "path_or_url": str(file), "extra_conf": extra}


def convolutions(text: object) -> list[list[int]]:
    """Return the channels, width and stride of each convolution that a text describes.

    Args:
        text: a list in Python, such as `[(512,10,5)] + [(512,3,2)] * 4`; sums of lists
            and multiples are allowed, and nothing else

    Raises:
        ValueError: anything else
    """

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.List):
            return [value(each) for each in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(value(each) for each in node.elts)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add) and isinstance(left, list):
                return left + right
            if isinstance(node.op, ast.Mult) and type(right) is int and right <= MOST:
                return left * right
        raise TypeError

    try:
        layers = [[*layer] for layer in value(ast.parse(str(text), mode="eval").body)]
        if not 0 < len(layers) <= MOST or any(
            len(layer) != 3 or any(type(n) is not int or n < 1 for n in layer)
            for layer in layers
        ):
            raise TypeError
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as e:
        raise ValueError(
            f"{LAYERS} of a self-supervised model is {str(text)[:80]!r}; expected up to "
            f"{MOST} convolutions, such as [(512,10,5)] + [(512,3,2)] * 4"
        ) from e
    return layers
