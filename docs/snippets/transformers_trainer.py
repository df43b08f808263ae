import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import fused_optim

model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
tokens = torch.randint(64, (32, 16))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

trainer = Trainer(
    model,
    TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=5,
        max_grad_norm=0,  # the optimizer clips
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    ),
    train_dataset=dataset,
    optimizer_cls_and_kwargs=(
        fused_optim.AdamW,
        {"lr": 1e-3, "weight_decay": 0.01, "max_grad_norm": 1.0},
    ),
)
trainer.train()
print("norm before clipping:", trainer.optimizer.optimizer.grad_norm.item())
