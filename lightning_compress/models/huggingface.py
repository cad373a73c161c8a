"""Classifiers of the transformers library, for images, texts and sounds; the only file that imports it."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Task = Literal["image", "text", "audio"]

#: What our form of attention is called in the library.
_FORM = "lightning_compress"
_EAGER = "eager_attention_forward"
#: Of the tokens of a pretrained model, the share that data must have at least: tables are padded a little.
_SAME_TOKENS = 0.95


@final
class Logits(nn.Module):
    """A Hugging Face classifier of images or sounds that takes a tensor and returns its logits as a tensor.

    Images are (B, C, H, W), the features of sounds (B, 1, T, bins); outputs (B, num_classes). The wrapped model is the
    child `net`; `portable` are arguments that build the network where the folder or hub that it came from is not there.
    """

    def __init__(self, net: nn.Module, task: Task = "image", portable: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.net = net
        self.task = task
        self.portable = portable or {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images, or sounds, to logits."""
        found = self.net(pixel_values=inputs) if self.task == "image" else self.net(input_values=inputs.squeeze(1))
        logits: Tensor = found.logits
        return logits


@final
class TextLogits(nn.Module):
    """A Hugging Face text classifier that takes token ids and returns its logits as a tensor.

    Inputs are (B, T), where `padding_id` is behind the end of a text and not attended to; outputs (B, num_classes).
    The wrapped model is the child `net`, and `portable` as of `Logits`.
    """

    def __init__(self, net: nn.Module, padding_id: int, portable: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.net = net
        self.padding_id = padding_id
        self.portable = portable or {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids to logits."""
        given = (tokens != self.padding_id).long()
        logits: Tensor = self.net(input_ids=tokens, attention_mask=given).logits
        return logits


def huggingface_model(
    name_or_config: str | Mapping[str, object],
    num_classes: int,
    *,
    task: Task | None = None,
    pretrained: bool = False,
    in_channels: int = 3,
    vocab_size: int | None = None,
    padding_id: int = 0,
    max_length: int | None = None,
    **kwargs: object,
) -> nn.Module:
    """Build a classifier of images, texts or sounds of the transformers library that returns logits.

    GPT's linear layers, which keep their weights turned around, are plain ones here, which methods and costs know.
    Attention is computed step by step. In models that compute it as BERT does (RoBERTa, DistilBERT, ELECTRA, ...) each
    attention has a child `scores` that puts out the scores before mask and softmax, (B, heads, T, T).

    Args:
        name_or_config: a hub id or local folder, or a configuration such as `{model_type: bert, hidden_size: 64}`.
        num_classes: logits; a pretrained head of another size is replaced by a fresh one.
        task: "image", "text" or "audio"; None: a text where there is a `vocab_size`, else an image.
        pretrained: load the weights too; needs a hub id or folder.
        in_channels: channels of the image.
        vocab_size: tokens of the data; those of a pretrained model want `data.tokenizer=<its folder>/tokenizer.json`.
        padding_id: the token behind the end of a text.
        max_length: tokens of the longest text, or frames of a sound; of None the configuration decides.
        kwargs: further fields of the configuration, for example `image_size`.

    Raises:
        ImportError: when transformers is not installed.
        ValueError: when the model is unknown, weights are asked of a bare configuration, code from the hub is, or
            the tokens of the data, or other shapes than the head's, are not the model's.
    """
    _check(name_or_config, task, pretrained, kwargs)
    task = task or ("image" if vocab_size is None else "text")
    fields: dict[str, Any] = {"num_labels": num_classes, **kwargs}
    if task == "image" and in_channels != 3:
        fields["num_channels"] = in_channels
    if task == "audio" and max_length is not None:
        fields["max_length"] = max_length
    if task == "text":
        fields["pad_token_id"] = padding_id
    if task == "text" and not pretrained:
        fields = _sizes(vocab_size, padding_id, max_length) | fields
    config = _config(name_or_config, fields)
    if task == "text" and pretrained:
        _check_tokens(config, vocab_size, max_length)
    net = _net(name_or_config if pretrained else None, config, task)
    _straighten(net)
    _show_scores(net)
    portable: dict[str, object] = {}
    if isinstance(name_or_config, str):
        portable = {"name_or_config": config.to_diff_dict(), "pretrained": False}
    return TextLogits(net, padding_id, portable) if task == "text" else Logits(net, task, portable)


def _check(name_or_config: object, task: object, pretrained: bool, kwargs: Mapping[str, object]) -> None:
    if "trust_remote_code" in kwargs or (isinstance(name_or_config, Mapping) and "trust_remote_code" in name_or_config):
        raise ValueError("model=hf runs no code from the hub: leave trust_remote_code away")
    if task is not None and task not in get_args(Task):
        raise ValueError(f"model=hf: expected task {' or '.join(get_args(Task))}, got {task!r}")
    if isinstance(name_or_config, Mapping) and (pretrained or "model_type" not in name_or_config):
        raise ValueError(
            "expected a configuration with model_type (such as bert) and pretrained=false, "
            f"got fields {', '.join(name_or_config)} and pretrained={str(pretrained).lower()}"
        )


def _library() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f"model=hf needs the transformers library: pip install transformers ({error})") from error
    return transformers


def _sizes(vocab_size: int | None, padding_id: int, max_length: int | None) -> dict[str, int]:
    """What the data says of a text model made from nothing; some count positions from behind the padding's id."""
    sizes = {} if vocab_size is None else {"vocab_size": vocab_size}
    return sizes if max_length is None else {**sizes, "max_position_embeddings": max_length + padding_id + 1}


def _config(name_or_config: str | Mapping[str, object], fields: dict[str, Any]) -> Any:
    auto = _library().AutoConfig
    if not isinstance(name_or_config, str):
        return auto.for_model(**{**fields, **name_or_config, "num_labels": fields["num_labels"]})
    try:
        return auto.from_pretrained(name_or_config, trust_remote_code=False, **fields)  # else it asks at the terminal
    except OSError as error:
        raise ValueError(f"no Hugging Face model {name_or_config!r}, neither folder nor hub id: {error}") from error


def _check_tokens(config: Any, vocab_size: int | None, max_length: int | None) -> None:
    if vocab_size is not None and not _SAME_TOKENS <= vocab_size / config.vocab_size <= 1.0:
        raise ValueError(
            f"model=hf: the weights are of {config.vocab_size} tokens and the data has {vocab_size}: "
            "write data.tokenizer=<the model's folder>/tokenizer.json"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length is not None and max_length > positions:
        raise ValueError(f"model=hf: it has {positions} positions and the data {max_length}: write data.max_length")


def _net(weights: object, config: Any, task: Task) -> nn.Module:
    library = _library()
    auto = {
        "image": library.AutoModelForImageClassification,
        "text": library.AutoModelForSequenceClassification,
        "audio": library.AutoModelForAudioClassification,
    }[task]
    try:
        if weights is None:
            made, other = auto.from_config(config, attn_implementation="eager"), []
        else:
            options = {"attn_implementation": "eager", "dtype": torch.float32, "ignore_mismatched_sizes": True}
            made, found = auto.from_pretrained(weights, config=config, output_loading_info=True, **options)
            other = sorted(found["mismatched_keys"])
    except ValueError as error:
        raise ValueError(f"model=hf: no classifier for task={task} from {config.model_type}: {error}") from error
    for name, theirs, own in other:
        if theirs[1:] != own[1:] or own[0] != config.num_labels:  # all but the head has to be what was trained
            raise ValueError(
                f"model=hf: {name} is {list(theirs)} in the weights and would be {list(own)} here: bring the data to "
                "what the model takes (data.channels=3), and leave fields that change its shape away"
            )
    assert isinstance(made, nn.Module)
    return made


@torch.no_grad()
def _straighten(net: nn.Module) -> None:
    """Make a linear layer of each `Conv1D`, whose weight is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(net.named_modules()):
        if isinstance(module, Conv1D):
            layer = nn.Linear(module.nx, module.nf, device="meta")
            layer.weight, layer.bias = nn.Parameter(module.weight.T.contiguous()), module.bias
            net.set_submodule(name, layer)


def _show_scores(net: Any) -> None:
    """Give each attention that is computed as in BERT a child that puts out its scores."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.bert import modeling_bert

    def mask(*args: Any, **kwargs: Any) -> Tensor:  # always there: what is traced must not depend on the example
        return eager_mask(*args, **{**kwargs, "allow_is_bidirectional_skip": False})  # type: ignore[no-any-return]

    known = _instructions(modeling_bert.eager_attention_forward)
    found = [module for module in net.modules() if _instructions(_own_attention(module)) == known]
    if found:
        AttentionInterface.register(_FORM, _attention)
        AttentionMaskInterface.register(_FORM, mask)
        net.set_attn_implementation(_FORM)
    for module in found:
        module.scores = nn.Identity()


def _own_attention(module: Any) -> Callable[..., Any] | None:
    """The function that the file of an attention layer has for it; its layers say whether they are causal."""
    return vars(sys.modules[type(module).__module__]).get(_EAGER) if hasattr(module, "is_causal") else None


def _instructions(function: Callable[..., Any] | None) -> object:
    code = getattr(function, "__code__", None)
    return code and (code.co_code, code.co_names, code.co_consts)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """As BERT computes it, (B, heads, T, width) to (B, T, heads, width), by way of the child `scores`."""
    scores = module.scores(query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling))
    shares = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (F.dropout(shares, dropout, module.training) @ value).transpose(1, 2).contiguous(), shares
