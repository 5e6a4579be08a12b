"""What a family of sizes costs, from one gene and from scratch: by algebra on curves that are made up."""

import numpy as np
import pytest

from benchmarks.family import targets
from benchmarks.family.cost import family_cost
from benchmarks.family.starts import BUNDLED, BY_MUON


class Study:
    """Curves [seeds, points] of one size by method, and what else a price is worked out from."""

    sizes = ("1x8", "2x8")
    settings = {"steps": 20, "batch_size": 50}

    def __init__(self, curves, seconds=1.0):
        self.curves, self.slower = curves, seconds
        gene = {"batch_size": 10, "parameters": 1}
        self.results = {
            "sizes": {"1x8": {"gflops": 1.0}, "2x8": {"gflops": 3.0}},
            "extraction_gflops_per_pair": 20.0,
            "muon_gflops_per_step": 0.0,
            "genes": {
                f"bundled/{BUNDLED}": gene | {"steps": 400, "seconds": 90.0},
                "genes-0/short": gene | {"steps": 100, "seconds": 20.0},
                "genes-1/short": gene | {"steps": 100, "seconds": 30.0},
            },
        }

    def curve(self, method):
        steps, values = self.curves[method]
        return np.array(steps), np.array(values, dtype=float)

    def values(self, *_, scale):
        return [4.0, 4.0]

    def seconds(self, method):
        return self.slower if method == BY_MUON else 1.0


@pytest.mark.parametrize(
    ("gene", "recall", "needed", "extraction", "seconds"),
    [(BUNDLED, 80, 250, 80.0, 90.0), ("short", 60, 150, 20.0, 25.0)],
)
def test_a_family_is_priced_at_the_accuracy_that_its_genes_descendants_have(gene, recall, needed, extraction, seconds):
    family = Study({BUNDLED: ([0, 20], [[70, 82], [70, 78]]), "short": ([0, 20], [[50, 60], [50, 60]])})
    long = Study({BY_MUON: ([0, 100, 200, 300], [[0, 50, 70, 90]])}, seconds=1.5)
    price = family_cost(family, long, BY_MUON, gene)
    assert (price["recall"], price["reached"], price["steps"]) == (recall, True, (needed, 20))
    each = 3 * 50 * (1 + 3) / 1e3  # teraflops of a step of every size
    assert price["teraflops"] == pytest.approx((needed * each, extraction + 20 * each))
    one_step = 2 * 4 / 20
    assert price["seconds"] == pytest.approx((needed * one_step * 1.5, seconds + 20 * one_step))
    assert price["extraction"]["steps"] == {BUNDLED: 400, "short": 100}[gene]


def test_a_price_says_where_scratch_never_gets_as_far():
    family = Study({BUNDLED: ([0, 20], [[70, 95]])})
    long = Study({"scratch": ([0, 300], [[0, 90]])})
    price = family_cost(family, long)
    assert (price["reached"], price["steps"][0]) == (False, 300)
    (teraflops, *_) = targets.cost(price, "scratch")
    assert teraflops["note"].endswith("scratch had not got there by its last step: lower bounds")
