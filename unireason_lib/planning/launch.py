"""How a planned stage is started: the shipped accelerate configuration of a strategy, and the command."""

from __future__ import annotations

from pathlib import Path

from unireason_lib.planning.machines import Cluster

FOLDER = Path(__file__).parents[1] / "training" / "launch"
"""Of the accelerate configurations that ship."""

CONFIGURATIONS = {"ddp": "ddp", "lora": "ddp", "qlora": "ddp", "zero3": "zero3", "fsdp2": "fsdp2"}

GPUS_A_NODE = 8


def launch_command(stage: str, profile: str, cluster: Cluster, strategy: str) -> str:
    """The command of a stage, to be run on every node.

    Args:
        stage: ``"sft"`` or ``"rl"``.
        profile: Its name.
        cluster: On what; more than eight GPUs are spread over nodes of eight.
        strategy: Of :data:`~unireason_lib.planning.memory.STRATEGIES`.
    """
    what = f"unireason_lib {stage} --profile {profile} --data DATA --model MODEL --out runs/{stage}/NAME"
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
