import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import fused_optim

model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
)
tokens = torch.randint(64, (32, 16))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

trainer = Trainer(
    model,
    TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=5,
        weight_decay=0.01,
        max_grad_norm=0,  # the optimizer clips
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    ),
    train_dataset=dataset,
    optimizer_cls_and_kwargs=(fused_optim.AdamW, {"lr": 1e-3, "max_grad_norm": 1.0}),
)
trainer.train()
print("norm before clipping:", trainer.optimizer.optimizer.grad_norm.item())
