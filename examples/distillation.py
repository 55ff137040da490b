"""Learn from a teacher in a file: train one, then a student of another family with its soft answers.

python examples/distillation.py 8
"""

import sys
from pathlib import Path

from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.train import TrainResult, train


def main(epochs: int = 8, out: str = "runs/distillation") -> TrainResult:
    folder = Path(out)
    train(ClassificationConfig(model="vmamba_nano", epochs=epochs, out=str(folder / "teacher")))
    student = train(
        ClassificationConfig(
            model="vim_nano",
            epochs=epochs,
            out=str(folder / "student"),
            distillation="soft",
            teacher="vmamba_nano",
            teacher_checkpoint=str(folder / "teacher"),
        )
    )
    assert student is not None
    print(f"student: top-1 {100 * student.final.top1:.1f} % of the {student.final_part} images")
    return student


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
