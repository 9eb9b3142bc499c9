#!/usr/bin/env python3
"""Writes docs/methods.md: every method with its formula, constants and quirks, from the registry, and what each reaches
on MNIST, from benchmarks/results/table_mnist.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ard_fast._files import write_text
from ard_fast.methods import METHODS, Method
from ard_fast.methods.__main__ import facts, formula_and_source
from ard_fast.training.comparison import mean_sd

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
RECORD = ROOT / "benchmarks" / "results" / "table_mnist.json"

_INTRO = """<!-- Written by `python scripts/methods_page.py`: edit the methods or that script, not this page. -->

# Methods

$S$ is the student, $T$ the teacher, $T'$ a second teacher trained on clean images, $P$ a peer trained beside the
student, $x$ the clean image, $x'$ the attacked image, $y$ the label, $\\tau$ the temperature.
$\\mathrm{KL}(a \\,\\Vert\\, b)$ has the reference distribution $a$ first. Pixels, eps and steps are in [0, 1].

`python -m ard_fast.train --method NAME` uses the constants listed below (on the digits and MNIST, tuned ones);
`--preset NAME-paper` adds the paper's training recipe for CIFAR-10, with MobileNetV2 unless it lists a student;
`--parity` adds the listed quirks of the published code. `--preset NAME-ema` adds a stronger recipe, for any data set:
OneCycle, weight decay 5e-4, label smoothing 0.4 where the loss has a cross-entropy, and an average of the weights (EMA
0.9995): the FastAT benchmark's for PGD-AT ([arXiv 2604.22853](https://arxiv.org/abs/2604.22853)).
`--compare-methods at,at-ema` compares both forms.
"""

# For each method the paper, what the student minimises, and how x' (or delta) and the weights are made. In `_tex` form.
_ATTACK = "x' = argmax_{|x' - x|_inf <= epsilon}\\, "
_ARD = "alpha tau^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y)"
_TRUST = "alpha [w tau^2 KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x'))] + (1 - alpha) CE(S(x), y)"
_ADAAD = (
    "https://openaccess.thecvf.com/content/CVPR2023/html/Huang_Boosting_Accuracy_and_Robustness_of_Student_Models_"
    "via_Adaptive_Adversarial_CVPR_2023_paper.html"
)
_FAIR = "https://papers.nips.cc/paper_files/paper/2023/hash/6111371a868af8dcfba0f96ad9e25ae3-Abstract-Conference.html"
_FREE = "delta <- clip_{[-epsilon, epsilon]}(delta + epsilon sign nabla_{delta} CE(S(x + delta), y))"
_STEP = (
    "x' = clip_{[x - epsilon, x + epsilon]}(x_0 + 1.25 epsilon sign nabla CE(S(x_0), y)), x_0 = x + u, "
    "u ~ U(-epsilon, epsilon)"
)
_FORMULAS = {
    "natural": ("", "CE(S(x), y)", ""),
    "at": ("1706.06083", "CE(S(x'), y)", _ATTACK + "CE(S(x'), y)"),
    "trades": ("1901.08573", "CE(S(x), y) + beta KL(S(x) || S(x'))", _ATTACK + "KL(S(x) || S(x'))"),
    "mart": (
        "https://openreview.net/forum?id=rklOg6EFwS",
        "BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - S_y(x))",
        _ATTACK + "CE(S(x'), y)",
    ),
    "ikl": (
        "2305.13948",
        "CE(S(x), y) + a M_w(S(x), S(x')) + b KL(sg(S(x)) || S(x'))",
        "M_w(r, z) = 1/4 \\sum_{j,k} w_j w_k ((z_j - z_k) - (r_j - r_k))^2",
        _ATTACK + "KL(S(x) || S(x')), w = \\mathbb{E}[softmax(z_S / t) | y]",
    ),
    "adr": (
        "2305.12118",
        "CE(S(x'), q)",
        _ATTACK + "CE(S(x'), q), \\quad q = l p + (1 - l) y, \\quad l = clip_{[0, 1]}(s - max_c p_c + p_y)",
        "p = softmax(z_E(x) / t), \\quad E <- d E + (1 - d) S",
    ),
    "free": ("1904.12843", "CE(S(x + delta), y)", _FREE),
    "fgsm-rs": ("2001.03994", "CE(S(x'), y)", _STEP),
    "n-fgsm": (
        "2202.01181",
        "CE(S(x'), y)",
        "x' = x_0 + epsilon sign nabla CE(S(x_0), y), x_0 = x + u, u ~ U(-k epsilon, k epsilon)",
    ),
    "kd": ("1503.02531", "alpha tau^2 KL(T(x) || S(x)) + (1 - alpha) CE(S(x), y)", ""),
    "ard": ("1905.09747", _ARD, _ATTACK + "CE(S(x'), y)"),
    "fast-ard": ("1905.09747", _ARD.replace("x'", "x + delta"), _FREE),
    "fgsm-ard": ("1905.09747", _ARD, _STEP),
    "rslad": (
        "2108.07969",
        "tau^2 [alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x))]",
        _ATTACK + "KL(T(x) || S(x'))",
    ),
    "ikl-rslad": (
        "2305.13948",
        "alpha D(T(x), S(x')) + (1 - alpha) D(T(x), S(x))",
        "D(r, z) = a M_w(r, z) + b KL(r || z)",
        _ATTACK + "KL(T(x) || S(x')), w = \\mathbb{E}[softmax(z_T / t) | y]",
    ),
    "iad-i": ("2106.04928", _TRUST, _ATTACK + "CE(S(x'), y), w = T_y(x')^{beta}"),
    "iad-ii": (
        "2106.04928",
        "alpha_1 R + alpha_2 tau^2 KL(T'(x') || S(x')) + (1 - alpha_1 - alpha_2) CE(S(x'), y)",
        "R = w tau^2 KL(T(x') || S(x')) + (1 - w) KL(S(x) || S(x')), w = T_y(x')^{beta}",
        _ATTACK + "CE(S(x'), y)",
    ),
    "mtard": ("2306.16170", "tau^2 [(1 - w) KL(T(x') || S(x')) + w KL(T'(x) || S(x))]", _ATTACK + "CE(S(x'), y)"),
    "adaad": (
        _ADAAD,
        "tau^2 [alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x))]",
        _ATTACK + "KL(T(x') || S(x'))",
    ),
    "adaiad": (_ADAAD, _TRUST.replace("T(x)", "T(x')"), _ATTACK + "KL(T(x') || S(x')), w = T_y(x')^{beta}"),
    "absld": (
        "2312.05508",
        "tau^2 [alpha KL(T^a(x) || S(x')) + (1 - alpha) KL(T^n(x) || S(x))]",
        _ATTACK + "KL(T^a(x) || S(x')), T^a(x) = softmax(z_T(x) / (tau a_y))",
    ),
    "fair-ard": (_FAIR, f"v_y [{_ARD}]", _ATTACK + "CE(S(x'), y), v_c propto kappa_c^{-p}"),
    "igdm": (
        "2312.03286",
        "tau^2 KL(T(x') || S(x')) + gamma (e/E) KL(Delta T || Delta S)",
        _ATTACK + "KL(T(x') || S(x')), Delta f = f(x + d) - f(x - d), d = x' - x",
    ),
    "saad": (
        "2512.10275",
        "w [tau^2 KL(T(x') || S(x')) + gamma (e/E) KL(Delta T || Delta S)]",
        _ATTACK + "KL(T~(x') || S(x')), w = s (H(T(x')) - min H)",
    ),
    "peeraid": (
        "2403.06668",
        "lambda_1 CE(S(x'), y) + tau^2 [lambda_2 KL(P(x') || S(x')) + lambda_3 KL(S(x) || S(x'))]",
        "min_P\\, CE(P(x'), y) + gamma_2 KL(S(x') || P(x'))",
        _ATTACK + "KL(P(x) || S(x'))",
    ),
}

# The settings behind the letters of a formula that are no flags themselves, as alpha and beta are.
_TRUST_SETTINGS = r"$\beta$ `trust_power`; $w = 1$ in the first `begin_share` of the epochs"
_IKL_SETTINGS = "$a$ `mse_weight`, $b$ `kl_weight`, $t$ `class_mean_temperature`"
_SETTINGS = {
    "ikl": _IKL_SETTINGS,
    "ikl-rslad": _IKL_SETTINGS,
    "adr": "$d$ `mean_teacher_decay`, $s$ from `first_soft_share` to `last_soft_share`, "
    "$t$ from `first_temperature` to `last_temperature`",
    "n-fgsm": "$k$ `noise_ratio`",
    "iad-i": _TRUST_SETTINGS,
    "iad-ii": r"$\alpha_1$ `alpha`, $\alpha_2$ `alpha2`, " + _TRUST_SETTINGS,
    "adaiad": _TRUST_SETTINGS,
    "fair-ard": "$p$ `fairness_power`",
    "igdm": r"$\gamma$ `igdm_weight`",
    "saad": r"$\gamma$ `igdm_weight`, $s$ `entropy_scale`",
    "peeraid": r"$\lambda_1$ `label_weight`, $\lambda_2$ `peer_weight`, $\lambda_3$ `self_weight`, "
    r"$\gamma_2$ `feedback_weight`",
}


def _tex(formula: str) -> str:
    """A formula in plain text as TeX: words, Greek letters and signs; subscripts are TeX already."""
    for plain, tex in (
        ("|x' - x|_inf", r"\Vert x' - x \Vert_\infty"),
        (" || ", r" \,\Vert\, "),
        ("<=", r"\le"),
        ("<-", r"\leftarrow"),
        ("~ U", r"\sim U"),
        ("T~", r"\tilde{T}"),
        ("e/E", r"e / E"),
    ):
        formula = formula.replace(plain, tex)
    formula = re.sub(r"\^([\d.]+)", r"^{\1}", formula)
    formula = re.sub(r" (?=[uvwxd](_[0c])? (=|\\sim|propto)|T\^a\(x\) =|Delta f)", r"\\quad ", formula)
    formula = re.sub(r"(\)|[a-z]) (?=BCE|CE|KL|sign|nabla|softmax|\[|\()", r"\1\\, ", formula)
    formula = re.sub(r"\b(BCE|CE|KL|argmax|clip|softmax|sign|sg|min|max)(?=\b|_)", r"\\mathrm{\1}", formula)
    formula = re.sub(
        r"\b(alpha|beta|gamma|delta|epsilon|kappa|tau|lambda|nabla|propto|Delta)(?=\b|_)", r"\\\1", formula
    )
    return formula.replace(r"\epsilon", r"\varepsilon")


def page() -> str:
    """The page's text."""
    parts = [_INTRO, *_overview(), "## Each method", *(_section(name, spec) for name, spec in METHODS.items())]
    return "\n".join(parts)


def _overview() -> list[str]:
    """One line a method: what it minimises, where it comes from, what it reaches."""
    reached = _reached()
    rows = []
    for name, spec in METHODS.items():
        formula, _ = formula_and_source(spec.summary)
        typeset = _FORMULAS[name][1] if name in _FORMULAS and len(_FORMULAS[name][1]) < 75 else formula
        loss = f"${_tex(typeset)}$" if "(" in formula else formula
        cells = [f"[{name}](#{name})", loss, _source(name, spec), reached.get(name, "-")]
        rows.append(f"| {' | '.join(cells)} |")
    columns = ["method", "the student minimises", "source", "robust %"]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    below = ["Robust: under APGD-T on MNIST, eps 0.3, a student of 10,074 parameters; [results](results.md).", ""]
    return ["## All of them", "", *head, *rows, "", *below]


def _reached() -> dict[str, str]:
    """By the method, robust accuracy of the student on MNIST; without the rows of recipes (`at-ema`)."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    plain = [row for row in rows if not row["is_teacher"] and row["label"].lower() == row["method"]]
    return {row["method"]: mean_sd(row["figures"]["apgd-t"]) for row in plain if row["figures"]["apgd-t"]}


def _source(name: str, spec: type[Method]) -> str:
    """The paper, with a link."""
    _, source = formula_and_source(spec.summary)
    link = _FORMULAS.get(name, ("",))[0]
    if not link:
        return source
    return f"[{source}]({link if link.startswith('http') else 'https://arxiv.org/abs/' + link})"


def _section(name: str, spec: type[Method]) -> str:
    title, _, rest = spec.summary.partition(": ")
    formula, _ = formula_and_source(spec.summary)
    words = f"{title}: {formula}" if "(" not in formula else title
    source = _source(name, spec)
    lines = ["", f"### {name}", "", f"{words[0].upper()}{words[1:]}" + (f" ({source})." if source != "-" else "."), ""]
    if name in _FORMULAS:
        lines += [f"$$\n{_tex(text)}\n$$\n" for text in _FORMULAS[name][1:] if text]
    else:
        lines += [rest, ""]
    lines += [f"- settings: {_SETTINGS[name]}"] if name in _SETTINGS else []
    facts_as_code = (
        re.sub(r"--[a-z-]+( [a-z-]+-paper)?", r"`\g<0>`", f"{label}: {text}") for label, text in facts(spec)
    )
    return "\n".join([*lines, *(f"- {fact}" for fact in facts_as_code)])


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    write_text(PAGE, page() + "\n")


if __name__ == "__main__":
    main()
