// The norm of all gradients, wherever they are, and what is done with it.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include "decision.h"
#include "gradients.h"

namespace fused_optim {

/// The gradients of a Python list of tensors. Throws NotFused where one is not plain, dense and of
/// a dtype and device that have kernels, or where they overlap and are to be written: two threads
/// would scale one element, each or both.
Gradients read_gradients(PyObject* list, bool are_written = false);

/// The type for torch's norm_type. Throws NotFused for others than 1, 2 and infinity, and where
/// complex gradients need the absolute value of each element.
NormType read_norm_type(double norm_type, PyObject* gradients);

/// The first gradient's device, where there is none the CPU.
Device first_device(const Gradients& gradients);

/// Draws the conclusion from the norm, on the first gradient's device. Returns the Decision, as a
/// tensor of three float64 there, the first of them the norm. The host waits only where gradients
/// are on a CPU and on a GPU.
at::Tensor total_norm(const Gradients& gradients, NormType type, Conclusion conclusion = {});

/// Where it lies in the tensor.
Decision* read_decision(const at::Tensor& decision);

/// Multiplies the gradients by min(1, max_norm / (norm + 1e-6)). Returns whether it may have: the
/// host knows for a norm on the CPU.
bool clip(const Gradients& gradients, const at::Tensor& norm, double max_norm);

}  // namespace fused_optim
