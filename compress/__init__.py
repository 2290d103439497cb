"""PyTorch: loading models, students, distillation, pruning, quantization, and the pipeline that joins them."""
