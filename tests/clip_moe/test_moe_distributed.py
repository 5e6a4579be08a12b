"""Two gloo processes beside one: diversify() finds the same clusters and trains the same experts.

Run as a program (by torchrun) this file is one of the two processes.
"""

import sys

import numpy as np
import pytest
import torch
from launching import launch

GLOBAL_BATCH = 4


def run(folder, batch_size):
    from pico import pico_clip, pico_pairs, pico_processor

    from mmlg_hf.clip_moe import DiversifyArguments, diversify

    args = DiversifyArguments(
        str(folder),
        num_experts=3,
        num_clusters=2,
        max_dropped=0.9,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        learning_rate=0.05,
        max_steps=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    diversify(pico_clip(), pico_pairs(40), args, processor=pico_processor())


@pytest.mark.slow
def test_two_processes_make_the_clusters_and_experts_of_one(tmp_path):
    from transformers import CLIPModel

    launch(__file__, tmp_path / "two")
    run(tmp_path / "one", GLOBAL_BATCH)
    for stage in (1, 2):
        one, two = (tmp_path / name / f"stage-{stage}" for name in ("one", "two"))
        assert np.array_equal(np.load(one / "clusters.npy"), np.load(two / "clusters.npy"))
        weights = [CLIPModel.from_pretrained(folder / "expert").state_dict() for folder in (one, two)]
        torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    run(sys.argv[1], GLOBAL_BATCH // 2)
