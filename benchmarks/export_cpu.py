"""How fast exported files are, beside the model itself: one CPU thread, in turns; and what int8 costs in accuracy on digits.

python benchmarks/export_cpu.py [MODEL [SIZE]]       writes benchmarks/results/export_cpu.json
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import visionssm
from visionssm.data import load_digits
from visionssm.data.transforms import Preprocessing, eval_transform
from visionssm.export import export, fuse, quantize_linear

RESULTS = Path(__file__).parent / "results" / "export_cpu.json"


def forms(model: torch.nn.Module, images: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """The model in every form that runs here; each is a function without arguments."""
    import onnxruntime

    size = tuple(images.shape[2:])
    found: dict[str, Callable[[], object]] = {"eager": lambda: model(images)}
    fused = fuse(model)
    found["fused"] = lambda: fused(images)
    compiled = torch.compile(model)
    found["compiled"] = lambda: compiled(images)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = export(model, folder / "model.onnx", img_size=size).file
    session = onnxruntime.InferenceSession(str(file), options)
    found["ONNX Runtime"] = lambda: session.run(None, {"images": images.numpy()})
    package = torch._inductor.aoti_load_package(str(export(model, folder / "model.pt2", "aoti", img_size=size).file))
    found["AOTInductor"] = lambda: package(images)
    return found


def measure(runs: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
    """Median seconds of computing time, the forms taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, run in runs.items():
                start = time.process_time()
                run()
                if turn > 1:
                    times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def digits_accuracy(model: torch.nn.Module) -> float:
    """Share of the 359 test digits that are right."""
    test = load_digits().test
    assert test is not None
    transform = eval_transform(Preprocessing.of_model(model))
    images = torch.stack([transform(test.load(i)) for i in range(len(test.labels))])
    with torch.inference_mode():
        return float((model(images).argmax(1) == torch.tensor(test.labels)).float().mean())


def int8_on_digits() -> dict[str, dict[str, float]]:
    """Accuracy of every shipped model, and of the same with its linear layers in int8."""
    found = {}
    for name in visionssm.list_models("*_nano"):
        model = visionssm.create_model(name, pretrained=True).eval()
        found[name] = {"float32": digits_accuracy(model), "int8": digits_accuracy(quantize_linear(model))}
        print(name, found[name], flush=True)
    return found


def main(name: str = "vmamba_tiny", size: int = 224) -> None:
    torch.set_num_threads(1)
    accuracy = int8_on_digits()
    model = visionssm.create_model(name).eval().requires_grad_(False)
    images = torch.randn(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(forms(model, images, Path(folder)))
    for form, value in seconds.items():
        print(f"{form:14} {1000 * value:8.1f} ms   {seconds['eager'] / value:.2f} times as fast as eager", flush=True)
    results = {"model": name, "size": size, "seconds": seconds, "int8": accuracy, "torch": torch.__version__}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
