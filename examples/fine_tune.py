"""Fine-tune trained weights on images of your own, in Python; `visionssm train --model NAME --pretrained --data DIR` does the same.

python examples/fine_tune.py DIR          one sub-folder for each class
python examples/fine_tune.py              the embedded digits
"""

import sys

from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.train import TrainResult, train


def main(
    data: str = "digits", model: str = "vmamba_nano", epochs: int = 3, out: str = "runs/fine-tuned"
) -> TrainResult:
    # vmamba_nano brings weights of its own; for the published ones of vmamba_tiny, pretrained=True downloads them.
    config = ClassificationConfig(model=model, pretrained=True, data=data, epochs=epochs, out=out)
    result = train(config)
    assert result is not None
    print(f"{result.final_part}: top-1 {100 * result.final.top1:.1f} %, files in {result.folder}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
