"""OpenVLA-OFT, the paper's policy: DINOv2 and SigLIP, a projector, and Llama, which decodes all K x D action tokens in
one pass (arXiv 2502.19645). Built from transformers' modules; published checkpoints load without code from the hub.

`policy.py` decides and learns. `config.py` names its sizes, `networks.py` its parts; `images.py` and `prompt.py`
prepare what it sees and is told; `published.py` reads checkpoints of other projects; `lora.py` trains few weights.
"""

from wmpo.policies.openvla_oft.config import OpenVLAOFTConfig
from wmpo.policies.openvla_oft.policy import OpenVLAOFT

__all__ = ["OpenVLAOFT", "OpenVLAOFTConfig"]
