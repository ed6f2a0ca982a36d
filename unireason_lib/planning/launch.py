"""How a planned stage is started: the shipped accelerate configuration of a strategy, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unireason_lib.planning.bill import RANK
from unireason_lib.planning.machines import Cluster

FOLDER = Path(__file__).parents[1] / "training" / "launch"
"""Of the accelerate configurations that ship."""

CONFIGURATIONS = {"ddp": "ddp", "lora": "ddp", "qlora": "ddp", "zero3": "zero3", "fsdp2": "fsdp2"}

GPUS_A_NODE = 8


def launch_command(
    stage: str,
    profile: Any,
    cluster: Cluster,
    strategy: str,
    *,
    changes: Sequence[str] = (),
    served: bool = False,
) -> str:
    """The command of a stage, to be run on every node.

    Args:
        stage: ``"sft"`` or ``"rl"``.
        profile: As it was planned, changes included.
        cluster: On what; more than eight GPUs are spread over nodes of eight.
        strategy: Of :data:`~unireason_lib.planning.memory.STRATEGIES`; where the profile trains in another way, the
            command says so.
        changes: Settings that were changed (``--set``).
        served: Whether rollouts come from a server.
    """
    words = list(changes)
    adapters, rank = strategy in ("lora", "qlora"), profile[stage].lora_rank
    if adapters != (rank is not None):
        words.append(f"{stage}.lora_rank={RANK if adapters else 'none'}")
    if (strategy == "qlora") != (profile.model.quantization == "4bit"):
        words.append(f"model.quantization={'4bit' if strategy == 'qlora' else 'none'}")
    if served and stage == "rl":
        words.append("rl.vllm=http://SERVER:8000")
    what = f"unireason_lib {stage} --profile {profile.name} --data DATA --model MODEL --out runs/{stage}/NAME"
    what += "".join(f" --set {shlex.quote(word)}" for word in words)
    if cluster.count == 1:
        return f"python -m {what}"
    nodes = -(-cluster.count // GPUS_A_NODE)
    parts = [
        "accelerate launch",
        f"--config_file unireason_lib/training/launch/{CONFIGURATIONS[strategy]}.yaml",
    ]
    parts += [f"--num_processes {cluster.count}"]
    if nodes > 1:
        parts += [
            f"--num_machines {nodes}",
            "--machine_rank $NODE",
            "--main_process_ip $FIRST --main_process_port 29500",
        ]
    return " ".join([*parts, f"-m {what}"])
