"""The training task, as Lightning runs it: model, loss, optimizer and schedule put together.

What is computed in each part is in the files it imports; what is watched meanwhile is in callbacks.py.
"""

from typing import Any, Literal

from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric

from lm.data import Batch, TokenDataModule
from lm.loss import bits_per_byte, cross_entropy, perplexity
from lm.optimizer import AdamW, clip_gradients
from lm.schedule import cosine_warmup
from lm.transformer import TransformerLM


class LanguageModel(LightningModule):
    """Trains a TransformerLM to predict the next token.

    Args:
        vocab_size: tokens that the model knows; at least as many as the tokenizer has.
        context_length: tokens that the model looks back on, itself included.
        d_model: width of the stream between the layers.
        num_layers: Transformer blocks.
        num_heads: attention heads in each; must divide d_model.
        d_ff: width of the feed-forward networks; null is 8/3 d_model to a multiple of 64 (4 d_model for silu).
        rope_theta: base of the rotary embedding's wavelengths.
        norm_position: RMSNorm before each part, after each addition, or nowhere.
        position_encoding: rotary embeddings, or none at all.
        feed_forward: the gated network, or the plain one.
        learning_rate: the highest, reached at the end of the warmup.
        min_learning_rate: the last, at the end of the cosine.
        warmup_steps: optimizer steps of linear warmup.
        max_steps: the step at which the cosine ends; trainer.max_steps.
        weight_decay: of AdamW.
        betas: of AdamW: memory of the gradient, and of its square.
        eps: of AdamW.
        max_gradient_norm: the gradient of all parameters together is scaled down to this length.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        d_ff: int | None = None,
        rope_theta: float = 10000.0,
        norm_position: Literal["pre", "post", "none"] = "pre",
        position_encoding: Literal["rope", "none"] = "rope",
        feed_forward: Literal["swiglu", "silu"] = "swiglu",
        learning_rate: float = 1e-3,
        min_learning_rate: float = 1e-4,
        warmup_steps: int = 100,
        max_steps: int = 1000,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        max_gradient_norm: float = 1.0,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)  # config.yaml is the one record of a run
        self.model = TransformerLM(
            vocab_size,
            context_length,
            d_model,
            num_layers,
            num_heads,
            d_ff,
            rope_theta,
            norm_position,
            position_encoding,
            feed_forward,
        )
        self.mean_validation_loss = MeanMetric()
        for name in ("learning_rate", "min_learning_rate", "warmup_steps"):
            if not self.hparams[name] >= 0:
                raise ValueError(f"{name} is {self.hparams[name]}; it must not be negative")
        if not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm is {max_gradient_norm}; it must be above 0; .inf never scales")
        self.configure_optimizers()  # what AdamW refuses is refused before a run begins

    @property
    def data(self) -> TokenDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model(token_ids)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = cross_entropy(self.model(inputs), targets)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        self.mean_validation_loss.update(cross_entropy(self.model(inputs), targets), weight=targets.numel())

    def on_validation_epoch_end(self) -> None:
        loss = self.mean_validation_loss.compute().item()
        self.mean_validation_loss.reset()
        about = self.data.files["validate"].description
        metrics = {
            "val/loss": loss,
            "val/perplexity": perplexity(loss),
            "val/bits_per_byte": bits_per_byte(loss, about.tokens, about.bytes),
        }
        if self.trainer.state.fn == "fit":
            metrics["step"] = float(self.global_step)  # Lightning draws the metrics at the value under this name
        self.log_dict(metrics, sync_dist=True)  # the same on every device; Lightning asks for this

    def configure_optimizers(self) -> AdamW:
        names = ("weight_decay", "betas", "eps")
        return AdamW(self.parameters(), lr=0.0, **{name: self.hparams[name] for name in names})

    def learning_rate(self, step: int) -> float:
        """Of optimizer step number `step`, counted from 1: the first step moves the weights, too."""
        return cosine_warmup(
            step,
            self.hparams["learning_rate"],
            self.hparams["min_learning_rate"],
            self.hparams["warmup_steps"],
            self.hparams["max_steps"],
        )

    def on_train_start(self) -> None:
        # A checkpoint brings the settings it was saved with; the ones that this run records are those that count.
        for group in self.trainer.optimizers[0].param_groups:
            group.update(
                weight_decay=self.hparams["weight_decay"], betas=tuple(self.hparams["betas"]), eps=self.hparams["eps"]
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        learning_rate = self.learning_rate(self.global_step + 1)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate
        self.log("lr", learning_rate)
        # Where the curves go on; Lightning's own count is one behind when a finished run is trained further.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Lightning calls this when the gradients are complete and unscaled."""
        norm = clip_gradients(self.parameters(), self.hparams["max_gradient_norm"])
        self.log("train/gradient_norm", norm)
