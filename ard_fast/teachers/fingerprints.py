"""Hashes of networks and images: what a file of logits, or a stopped run, belongs to."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn

from ard_fast.data.splits import Split

_MOST = 1 << 30  # bytes of images that are hashed to know a split again
_CHUNK = 1 << 24  # bytes hashed at once, so that no whole copy of a data set is made


def fingerprint_network(network: nn.Module) -> str:
    """Hash of weights, buffers, layers and their settings, as far as `repr` shows them."""
    digest = hashlib.blake2b(digest_size=16)
    kinds = [f"{type(module).__module__}.{type(module).__qualname__}" for module in network.modules()]
    digest.update(json.dumps([repr(network), kinds]).encode())
    return _hash_weights(digest, network)


def fingerprint_weights(network: nn.Module) -> str:
    """Hash of weights and buffers alone, whatever the classes are called that hold them."""
    return _hash_weights(hashlib.blake2b(digest_size=16), network)


def fingerprint_images(images: Tensor, ids: Tensor) -> str:
    """Hash of uint8 images `[N, C, H, W]` and the id of each."""
    digest = hashlib.blake2b(digest_size=16)
    for value in (ids, images):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        _update(digest, value)
    return digest.hexdigest()


def fingerprint_split(split: Split) -> str:
    """Hash of labels, ids and images; of more than 1 GiB of images, of as many as fit into that, evenly spaced."""
    step = -(-split.images.numel() // _MOST)
    digest = hashlib.blake2b(fingerprint_images(split.images[::step], split.ids).encode(), digest_size=16)
    _update(digest, split.labels)
    return digest.hexdigest()


def _hash_weights(digest: hashlib.blake2b, network: nn.Module) -> str:
    for key, value in network.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        _update(digest, value)
    return digest.hexdigest()


def _update(digest: hashlib.blake2b, value: Tensor) -> None:
    flat = value.detach().contiguous().flatten().view(torch.uint8)
    for start in range(0, len(flat), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
