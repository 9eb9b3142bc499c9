"""What suits a data set or a paper's preset, on top of the fields' own defaults."""

from __future__ import annotations

from typing import Any

# Tuned on the validation split; benchmarks/NOTES.md says what was tried.
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "student": "digits-student",
        "peer": "digits-teacher",
        "teacher": "digits-teacher",
        "clean_teacher": "digits-teacher",
        "epochs": 15,
        "teacher_epochs": 25,
        "batch_size": 64,
        "eps": 0.2,
        "crop_padding": 0,
        "flip": False,
        "device": "cpu",  # networks this small only lose time to a GPU
        "threads": 1,  # and to more threads
        "fold": "false",  # and to folding
    },
    # The radii that are usual for them. A mirrored digit is no digit.
    "mnist": {
        "student": "mnist-student",
        "teacher": "mnist-teacher",
        "clean_teacher": "mnist-teacher",
        "epochs": 3,
        "teacher_epochs": 3,
        "eps": 0.3,
        "crop_padding": 0,
        "flip": False,
    },
    "fashion-mnist": {"eps": 0.1, "crop_padding": 2},
}

# Constants of methods that suit a data set better than their papers' (which are CIFAR's); read only by methods that
# have them.
EVERY_METHOD = "*"
METHOD_ON_DATASET: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        EVERY_METHOD: {"steps": 7, "lr": 0.05, "schedule": "cosine"},
        "at-ema": {"lr": 0.2, "label_smoothing": 0.0},  # smoothed, it withstands PGD only
        "ard-ema": {"lr": 2.0},
        "trades": {"lr": 0.1},
        "ikl": {"lr": 0.1, "mse_weight": 5.0},
        # of 255 updates: with 0.995 a quarter of the average would still be the first weights
        "adr": {"lr": 0.2, "mean_teacher_decay": 0.9},
        "free": {"replays": 4},
        "fgsm-rs": {"lr": 0.1},
        "n-fgsm": {"lr": 0.1, "noise_ratio": 1.0},  # twice eps is most of the pixel range here
        "kd": {"lr": 0.5, "temperature": 3.0},
        "ard": {"lr": 0.5, "temperature": 3.0},
        "fast-ard": {"lr": 0.5, "temperature": 3.0},
        "fgsm-ard": {"lr": 1.0, "temperature": 3.0},
        "rslad": {"lr": 0.5, "temperature": 3.0},
        "ikl-rslad": {"lr": 0.1, "mse_weight": 0.5},  # this teacher's logits are far apart
        "iad-i": {"lr": 0.1, "temperature": 3.0},
        "iad-ii": {"lr": 0.1, "temperature": 3.0},
        "mtard": {"lr": 1.0},
        "adaad": {"lr": 1.0, "temperature": 3.0},
        "adaiad": {"lr": 0.1, "temperature": 3.0},
        "absld": {"lr": 1.0},
        "fair-ard": {"lr": 0.5, "temperature": 3.0},
        "igdm": {"lr": 0.1, "temperature": 3.0},
        "saad": {"lr": 0.1, "temperature": 3.0},
        # Peer and student share the rate: no higher one can make up for a KL divided by the classes.
        "peeraid": {"temperature": 3.0, "reduction": "batchmean"},
    },
    # At T = 30 and a learning rate of 0.1, as on CIFAR-10, the KL divided by B * C moves the student too little.
    "mnist": {
        EVERY_METHOD: {"steps": 5, "lr": 0.1, "schedule": "onecycle"},
        **{
            name: {"lr": 1.0, "temperature": 1.0}
            for name in ("kd", "ard", "fgsm-ard", "rslad", "mtard", "adaad", "absld", "fair-ard")
        },
        "fast-ard": {"lr": 0.3, "temperature": 1.0},
        "adaiad": {"temperature": 1.0},
        "n-fgsm": {"noise_ratio": 1.0},  # twice eps is more than the pixel range here
        "free": {"replays": 4, "lr": 0.03},
        # of 1,400 updates
        "adr": {"lr": 0.4, "mean_teacher_decay": 0.95},
        "peeraid": {"temperature": 1.0, "reduction": "batchmean"},
    },
}

# Of every paper's preset, on CIFAR-10.
PRESET_ON_CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "student": "mobilenetv2",
    "batch_size": 128,
    "lr_factor": 0.1,
    "eps": 8 / 255,
    "eval_step_size": 2 / 255,
    "crop_padding": 4,
    "flip": True,
}
