import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import fused_optim

base = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
)
model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = fused_optim.AdamW(trained, lr=1e-4, max_grad_norm=1.0, zero_grads=True)

for _ in range(3):
    tokens = torch.randint(64, (4, 16))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()  # clip, step and zero of all of them: one call
print(f"{len(trained)} tensors, norm before clipping: {optimizer.grad_norm.item():.3f}")
