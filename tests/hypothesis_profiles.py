"""How many examples the property and fuzz tests try. Import this module before any `@given`.

The default is for every run of the suite: few examples, always the same ones, seconds. The long one is for people:

    HYPOTHESIS_PROFILE=long HYPOTHESIS_EXAMPLES=2000 pytest tests/ops

Each test of the long profile tries that many, other ones every time.
"""

import os

from hypothesis import HealthCheck, Phase, settings

# Strategies here draw a few numbers and a seed, and torch makes the tensors: no example is large or slow by itself,
# but a busy machine can make any of them so.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}

settings.register_profile(
    "quick", max_examples=12, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate, Phase.shrink],
    **_COMMON,
)  # fmt: skip
settings.register_profile(
    "long", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "2000")), print_blob=True, **_COMMON
)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
if PROFILE not in ("quick", "long"):
    raise ValueError(f"HYPOTHESIS_PROFILE must be 'quick' or 'long', got {PROFILE!r}")
settings.load_profile(PROFILE)

# For tests whose examples are cheap, and whose cases are many.
often = settings(max_examples=3 * settings.get_profile(PROFILE).max_examples)
