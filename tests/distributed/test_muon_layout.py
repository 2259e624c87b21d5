"""The regions of matrices, against what every rank of every layout really holds."""

import layouts
import pytest
import torch


def mismatches(layout: str, **arguments) -> tuple[int, list[str], dict]:
    """Matrices looked at, those whose local part is not their region, and one's regions."""
    from titan_motif.components.muon.layout import regions_of
    from titan_motif.model.initialization import plain_name

    model, _ = layouts.build(layout, **arguments)
    rank, wrong, count, regions = torch.distributed.get_rank(), [], 0, {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            found = regions_of(parameter)
            part = found[rank].of(parameter.full_tensor())
            count += 1
            if not torch.equal(part, parameter.to_local()):
                wrong.append(plain_name(name))
            if plain_name(name) == "layers.0.attention.q_proj.weight":
                regions = found
    return count, wrong, regions


@pytest.mark.parametrize("layout", ["one", "fsdp2", "fsdp3", "hsdp2x2", "tp2", "tp4", "fsdp2_tp2"])
def test_regions_are_what_each_rank_holds(rank_pool, layout: str):
    ranks = {"one": 1, "fsdp2": 2, "fsdp3": 3, "tp2": 2}.get(layout, 4)
    results = rank_pool.run(mismatches, ranks, layout)
    for count, wrong, regions in results:
        assert count == 2 + 2 * 7
        assert not wrong
        assert regions == results[0][2]  # every rank knows all ranks' regions
        assert sorted(regions) == list(range(ranks))


def test_uneven_and_empty_regions(rank_pool):
    (_, wrong, regions), *_ = rank_pool.run(mismatches, 3, "fsdp3", n_heads=5, n_kv_heads=2)
    assert not wrong
    # 20 rows over 3 ranks
    assert [region.shape for region in regions.values()] == [(7, 40), (7, 40), (6, 40)]

    from titan_motif.components.muon.layout import _chunk

    # as torch.chunk: 4 rows over 3 ranks leave the third with none
    assert [_chunk(0, 4, index, 3) for index in range(3)] == [(0, 2), (2, 4), (4, 4)]


def test_what_has_no_regions_is_refused():
    from titan_motif.components.muon.layout import regions_of

    with pytest.raises(ValueError, match=r"shape \(3,\); a matrix is needed"):
        regions_of(torch.ones(3))
    with pytest.raises(ValueError, match="a plain tensor, whose ranks are not known"):
        regions_of(torch.ones(3, 3))
