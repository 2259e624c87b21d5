"""What differential attention refuses, each with one line."""

import re
from functools import partial

import pytest
import torch

from titan_motif import kernels
from titan_motif.kernels import attention_problem
from titan_motif.kernels.launch import IS_INTERPRETED

BF16, FP16 = torch.bfloat16, torch.float16
triton_attention = partial(kernels.grouped_differential_attention, implementation="triton")


@pytest.mark.parametrize(
    ("num_heads", "num_key_heads", "ratio"), [(7, 2, 3), (4, 3, 3), (12, 4, 3), (8, 6, 1)]
)
def test_differential_attention_names_wrong_heads(num_heads, num_key_heads, ratio):
    q = torch.zeros(1, 3, num_heads, 16)
    k = torch.zeros(1, 3, num_key_heads, 16)
    message = (
        f"^{num_heads} query heads at ratio {ratio} with {num_key_heads} key heads: heads must be "
        "a multiple of ratio [+] 1, and their groups a multiple of the key pairs$"
    )
    with pytest.raises(ValueError, match=message):
        kernels.grouped_differential_attention(q, k, k, torch.tensor(0.5), ratio)


def test_differential_attention_names_what_it_cannot_serve():
    lam = torch.tensor(0.5)

    def attend(dtype=FP16, head_dim=16, **options):
        q, k = (torch.zeros(1, 3, heads, head_dim, dtype=dtype) for heads in (4, 2))
        return kernels.grouped_differential_attention(q, k, k, lam, 3, **options)

    with pytest.raises(
        ValueError, match=r"^implementation is 'torch'; one of 'auto', 'triton', 'sdpa' is needed$"
    ):
        attend(implementation="torch")
    for served in (attend(dtype=torch.float32), attend(head_dim=48)):  # "auto" takes SDPA
        assert served.shape[:3] == (1, 3, 3)
    k = torch.zeros(1, 3, 2, 16)
    message = r"^v has the shape \(1, 3, 2, 8\); k's, \(1, 3, 2, 16\), is needed$"
    with pytest.raises(ValueError, match=message):
        kernels.grouped_differential_attention(torch.zeros(1, 3, 4, 16), k, k[..., :8], lam, 3)


def test_differential_attention_names_what_the_kernels_do_not_take(device):
    def attend(dtype=FP16, head_dim=16):
        q, k = (torch.zeros(1, 3, n, head_dim, dtype=dtype, device=device) for n in (4, 2))
        return triton_attention(q, k, k, torch.tensor(0.5, device=device), 3)

    message = "^implementation is 'triton'; torch.float32 is not served, only bfloat16 and float16$"
    with pytest.raises(ValueError, match=message):
        attend(dtype=torch.float32)
    message = "^implementation is 'triton'; head_dim is 48; one of 16, 32, 64, 128 is needed$"
    with pytest.raises(ValueError, match=message):
        attend(head_dim=48)


WRONG = {
    "ratio is 0; at least 1 is needed": {"ratio": 0},
    "ratio is -1; at least 1 is needed": {"ratio": -1},
    "there are no key heads; a pair is needed": {"k": (2, 5, 0, 16)},
    "lam has the shape (1,); a scalar is needed": {"lam": (1,)},
    "q has the shape (2, 5, 4, 16), k (1, 5, 2, 16); only their heads": {"k": (1, 5, 2, 16)},
    "q has the shape (2, 5, 4, 16), k (2, 4, 2, 16); only their heads": {"k": (2, 4, 2, 16)},
    "q has the shape (2, 5, 4, 16), k (2, 5, 2, 8); only their heads": {"k": (2, 5, 2, 8)},
    "q, k and v are torch.float32, torch.float64, torch.float64": {"dtype": torch.float64},
    "document_ids have the shape (1, 5); that of the tokens, (2, 5)": {"ids": (1, 5)},
    "document_ids have the shape (2, 6); that of the tokens, (2, 5)": {"ids": (2, 6)},
    "document_ids has the shape (5,)": {"ids": (5,)},
}


@pytest.mark.parametrize("message", WRONG)
def test_differential_attention_names_what_does_not_fit(message: str):
    change = WRONG[message]
    k = torch.zeros(change.get("k", (2, 5, 2, 16)), dtype=change.get("dtype", torch.float32))
    lam = torch.zeros(change.get("lam", ()))
    ids = torch.zeros(change.get("ids", (2, 5)), dtype=torch.long)
    q = torch.zeros(2, 5, 4, 16)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        kernels.grouped_differential_attention(q, k, k, lam, change.get("ratio", 3), ids)


def test_differential_attention_problems_are_told_by_device():
    assert "meta needs 'sdpa'" in attention_problem(FP16, 64, torch.device("meta"))
    problem = attention_problem(FP16, 64, torch.device("cpu"))
    assert (problem is None) == IS_INTERPRETED
    problem = attention_problem(BF16, 64, torch.device("cpu"))
    assert ("interpreter" if IS_INTERPRETED else "cpu needs 'sdpa'") in problem
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        assert attention_problem(BF16, 64, torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((9, 0), BF16, "triton"),
        ((9, 0), FP16, "triton"),
        ((9, 0), torch.float32, "sdpa"),  # not served
        ((8, 0), BF16, "sdpa"),  # served, not measured
        ((10, 0), BF16, "sdpa"),
    ],
)
def test_differential_attention_is_fastest_by_what_was_measured(
    monkeypatch, capability: tuple[int, int], dtype: torch.dtype, expected: str
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    device = torch.device("cuda")
    assert kernels.fastest_attention(dtype, 128, device) == expected
    assert kernels.fastest_attention(dtype, 24, device) == "sdpa"
    assert kernels.fastest_attention(dtype, 128, torch.device("cpu")) == "sdpa"
