"""The margin of Carlini and Wagner under PGD."""

from __future__ import annotations

from torch import Tensor

from ard_fast.attacks.pgd import PGD


class CWLinf(PGD):
    """CW-infinity as robust-training papers evaluate it: PGD on the margin loss of Carlini and Wagner (2017).

    The gradient is that of -max(z_y - max_{j!=y} z_j + kappa, 0): it vanishes once the image is beyond the boundary by
    `kappa`.

    Args:
        kappa: at least 0, or inf for a loss that is never switched off; the published codes take 50.
        Others: as for `PGD`.
    """

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 30,
        kappa: float = 50.0,
        random_start: bool = True,
        restarts: int = 1,
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        clamp_start: bool = True,
        eot: int = 1,
    ) -> None:
        super().__init__(
            eps=eps,
            step_size=step_size,
            steps=steps,
            loss="margin",
            random_start=random_start,
            restarts=restarts,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            clamp_start=clamp_start,
            eot=eot,
            kappa=kappa,
        )
