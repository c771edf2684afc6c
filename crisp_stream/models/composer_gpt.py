"""The GPT as Composer's Trainer sees it."""

from __future__ import annotations

from typing import Any

from composer.models import HuggingFaceModel


class TrainedGPT(HuggingFaceModel):
    """Composer's wrapper, of which a training step keeps the loss alone.

    Composer holds the outputs of a microbatch until those of the next are there. Logits of 16 windows of 1,024 tokens
    over 32,768 ids are 1.1 GB in bfloat16, and nobody reads them.
    """

    def forward(self, batch: dict[str, Any]) -> Any:
        """Loss of a microbatch; in eval mode all that the GPT returns."""
        outputs = super().forward(batch)
        return {"loss": outputs["loss"]} if self.training else outputs

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """The loss of `forward`. Composer's own asks the config for what transformers 5 warns of."""
        return outputs["loss"]
