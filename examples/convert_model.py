"""Gate a ResNet you already have, run it sparse, and see what each sample costs."""

import torch

import ddi

model = ddi.create_model("cifar_resnet20").eval()  # or your own, with torchvision-like blocks
images = torch.randn(8, 3, 32, 32)

ddi.convert_(model, ddi.DDIConfig(group_size=4), example_input=images)  # checked: output unchanged

# One training step towards 30 % of the MACs.
optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
with ddi.record(model) as rec:
    loss = torch.nn.functional.cross_entropy(model(images), torch.randint(10, (8,)))
(loss + 2.0 * ddi.budget_loss(rec, target=0.3)).backward()
optimizer.step()

# Inference runs the compiled sparse kernels: closed channels and skipped blocks cost nothing.
ddi.prepare_(model)
with torch.inference_mode(), ddi.record(model) as rec:
    model(images)
print(f"dense {rec.dense_macs / 1e6:.1f} MMAC, per sample {[round(m / 1e6, 1) for m in rec.macs.tolist()]}")

ddi.revert_(model)  # the plain model again, its state_dict keys as they were
