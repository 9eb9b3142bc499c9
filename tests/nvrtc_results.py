"""`python nvrtc_results.py FILE`: what every operator gives on CUDA tensors, written to FILE, for test_nvrtc_gpu.py.

Also prints, as JSON, which kernels served and how long the first calls took.
"""

import json
import sys
from pathlib import Path

import torch

import ard_fast
from ard_fast import functional as F
from ard_fast._load import load


def moved(values, function):
    """The arguments with every tensor, also those in lists, replaced."""
    if isinstance(values, torch.Tensor):
        return function(values)
    return type(values)(moved(v, function) for v in values) if isinstance(values, list | tuple) else values


def tensors(values):
    """All tensors in arguments or results, in order."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [t for v in values for t in tensors(v)] if isinstance(values, list | tuple) else []


def results(device: torch.device) -> list[torch.Tensor]:
    """Of all samples of all operators, and of sizes that fill the GPU, with subnormal numbers among them."""
    from op_cases import CASES

    found = []
    for case in CASES.values():
        torch.manual_seed(0)
        op, arguments = case(torch.device("cpu"))
        given = moved(arguments, lambda t: t.to(device))
        found += [*tensors(op(*given)), *tensors(given)]
    torch.manual_seed(0)
    x = torch.rand(64, 3, 32, 32)
    x[0] *= 1e-39
    grad = torch.randn_like(x)
    x, grad = x.to(device), grad.to(device)
    for step in (F.pgd_linf_step_, F.pgd_l2_step_):
        found.append(step(x.clone(), grad, x, step_size=0.1, eps=0.2))
    for classes in (10, 1000, 20000):
        student, teacher = (5.0 * torch.randn(2, 32, classes)).to(device).unbind()
        student.requires_grad_()
        loss = F.kl_distill_loss(student, teacher, temperature=3.0)
        found += [loss.detach(), torch.autograd.grad(loss, student)[0]]
    return found


def main() -> None:
    first = results(torch.device("cuda"))
    torch.cuda.synchronize()
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        again = results(torch.device("cuda"))
    beside.synchronize()
    same_on_stream = all(a.equal(b) for a, b in zip(first, again, strict=True))

    # Captured with no call before it: only what was compiled beforehand can be in the graph.
    ready = ard_fast.compile_kernels()
    x = torch.rand(8, 3, 32, 32, device="cuda")
    grad, seed = torch.randn_like(x), torch.tensor([7], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_adv = F.random_start(x, eps=0.1, seed=seed)
        F.mifgsm_step_(x_adv, torch.zeros_like(x), grad, x, step_size=0.02, eps=0.1, decay=1.0)
    graph.replay()
    expected = F.random_start(x, eps=0.1, seed=seed)
    F.mifgsm_step_(expected, torch.zeros_like(x), grad, x, step_size=0.02, eps=0.1, decay=1.0)
    facts = {
        "backend": load().cuda_backend,
        "ready": ready,
        "same_on_stream": same_on_stream,
        "same_in_graph": x_adv.equal(expected),
        "same_on_second_device": None,
    }
    if torch.cuda.device_count() > 1:
        second = results(torch.device("cuda", 1))
        if torch.cuda.get_device_capability(0) == torch.cuda.get_device_capability(1):
            facts["same_on_second_device"] = all(a.cpu().equal(b.cpu()) for a, b in zip(first, second, strict=True))
    torch.save([t.cpu() for t in first], Path(sys.argv[1]))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
