"""Classify arrays of pixels with model.onnx; needs numpy and onnxruntime.

python predict.py pixels.npy         label and share of each picture, [number, channels, height, width] as stored
python predict.py texts.txt          the same of each line, where there is a tokenizer.json; needs tokenizers too
                                     a language model tells the token that comes next
python predict.py --check            outputs on samples.npz beside those that PyTorch gave
Add --float-kernels where measure.py found them faster.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


def whole(name: str) -> Path:
    """A file of this folder, which has to be the one that was written here."""
    path, listed = HERE / name, (HERE / "checksums.sha256").read_text().splitlines()
    if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" not in listed:
        raise ValueError(f"{path} is damaged, or not the file that checksums.sha256 lists: copy the folder again")
    return path


def predict(pixels: np.ndarray, kernels: str = "integer") -> np.ndarray:
    """Scores [number, classes] of `pixels` [number, ...]; of a language model [number, classes, length]."""
    facts, options = json.loads((HERE / "preprocessing.json").read_text()), onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # int8 sums must not saturate on older CPUs
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float activations stay float
    if kernels == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    tokens = facts["input_dtype"] == "int64"
    if list(pixels.shape[1:]) != facts["input_shape"] and not (tokens and pixels.ndim == 2):
        raise ValueError(f"expected pixels of shape [number, *{facts['input_shape']}], got {list(pixels.shape)}")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(whole("model.onnx")), options, ["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    if tokens:
        found: np.ndarray = session.run(None, {session.get_inputs()[0].name: pixels.astype(np.int64)})[0]
        return found
    mean, std = (np.array(facts[name]).reshape([-1] + [1] * (pixels.ndim - 2)) for name in ("mean", "std"))
    scale, shift = (facts["pixel_scale"] / std).astype(np.float32), (-mean / std).astype(np.float32)
    scores: np.ndarray = session.run(None, {session.get_inputs()[0].name: pixels.astype(np.float32) * scale + shift})[0]
    return scores


def read(path: str) -> list[np.ndarray]:
    """Batches: an array of pixels or tokens, or the tokens of the lines of a text, each by itself where not padded."""
    if path.endswith(".npy"):
        return [np.load(path)]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(whole("tokenizer.json")))  # which pads and cuts as in training
    lines = [line.ids for line in tokenizer.encode_batch(Path(path).read_text("utf-8").splitlines())]
    return [np.array(lines)] if len({len(line) for line in lines}) == 1 else [np.array([line]) for line in lines]


def check(kernels: str) -> str:
    """Compare with PyTorch on real samples; an error where the gap is more than rounding explains."""
    with np.load(HERE / "samples.npz") as samples:
        expected, limit = samples["outputs"], float(samples["tolerance"])
        error = np.abs(predict(samples["pixels"], kernels) - expected)
    gap = float(error.mean() / np.abs(expected).mean())
    told = f"{len(expected)} samples: largest gap to PyTorch {error.max():.3g}, mean {gap:.3g} of the outputs' size"
    if not gap <= limit:
        raise ValueError(f"{told}, of which rounding explains {limit:.3g}")
    return f"{told} (at most {limit:.3g}): the same model"


def main() -> None:
    """Read the command line."""
    kernels = "float" if "--float-kernels" in sys.argv else "integer"
    files = [word for word in sys.argv[1:] if word not in ("--float-kernels", "--check")]
    if "--check" in sys.argv:
        print(check(kernels))
    elif len(files) == 1:
        labels = json.loads((HERE / "labels.json").read_text())
        for scores in (predict(batch, kernels) for batch in read(files[0])):
            for row in scores.reshape(*scores.shape[:2], -1)[:, :, -1]:  # of a language model what follows the text
                print(labels[int(row.argmax())], f"{1 / np.exp(row - row.max()).sum():.3f}")
    else:
        raise ValueError("expected one .npy file of pixels or tokens, one .txt file of texts, or --check")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # onnxruntime's errors have no base class of their own
        sys.exit(f"error: {' '.join(str(error).split())}")
