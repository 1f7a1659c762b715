// Verifies that the tensors behind a table of addresses are still what the table says, in every step.
//
// No headers of Python or torch, and nothing to link: Python tensors are read through Python's stable ABI and through
// torch's C interface for ahead-of-time compiled models (aoti_torch_get_*, a stable ABI too).
// optim/adan_optim/engine/native.py passes the addresses of these functions.
#pragma once
#include <cstdint>

#include "rules.h"

struct PyObject;  // of which no more is known here

namespace tensors {

// Functions of Python.
struct Python {
  intptr_t (*list_size)(PyObject* list);
  PyObject* (*list_item)(PyObject* list, intptr_t index);
  intptr_t (*dict_size)(PyObject* dict);
  int (*dict_next)(PyObject* dict, intptr_t* position, PyObject** key, PyObject** value);
};

// Functions of torch, which take the address of a C++ tensor; those that return an int return 0 for success.
// `handle` is where a Python tensor object holds its C++ tensor, in bytes.
struct Torch {
  Python python;
  int64_t handle;
  int (*data_ptr)(const void*, void**);
  int (*dtype)(const void*, int32_t*);
  int (*device_type)(const void*, int32_t*);
  int (*device_index)(const void*, int32_t*);
  int (*dim)(const void*, int64_t*);
  int (*sizes)(const void*, int64_t**);
  int (*strides)(const void*, int64_t**);
  bool (*is_neg)(const void*);
  bool (*has_dispatch)(const void*);
  void (*bump_version)(const void*);
  // Of what a C++ tensor points to: the C++ tensor that is its gradient, and whether it has a storage, as all have that
  // are strided and no other.
  const void* (*grad)(const void*);
  bool (*has_storage)(const void*);
};

struct Tensor {
  char* data;
  uint64_t fingerprint;  // changes with dtype, shape, and the strides of dimensions longer than 1
};

inline const void* handle(const Torch& torch, PyObject* object) {
  return reinterpret_cast<const char*>(object) + torch.handle;
}

// Whether a strided tensor of a plain type could be described: no lazy negation, memory behind it. Its device is in
// its address.
inline bool describe(const Torch& torch, const void* x, Tensor* to) {
  int32_t dtype;
  int64_t dim, *sizes, *strides, count = 1;
  void* data;
  if (torch.is_neg(x) || torch.dtype(x, &dtype) || torch.dim(x, &dim) || torch.sizes(x, &sizes) ||
      torch.strides(x, &strides) || torch.data_ptr(x, &data))
    return false;
  constexpr uint64_t prime = 0x9E3779B97F4A7C15;
  uint64_t h = uint64_t(dtype) << 8 | uint64_t(dim);
  for (int64_t d = 0; d < dim; ++d) {
    h = (h ^ uint64_t(sizes[d])) * prime;
    h = (h ^ h >> 32 ^ (sizes[d] == 1 ? 0 : uint64_t(strides[d]))) * prime;
    count *= sizes[d];
  }
  *to = {static_cast<char*>(data), h};
  return data || !count;
}

// Whether a list, or the values of a dict, are the very same `count` objects as before.
inline bool same_items(const Python& python, PyObject* list, PyObject* const* before, intptr_t count) {
  if (python.list_size(list) != count) return false;
  for (intptr_t i = 0; i < count; ++i)
    if (python.list_item(list, i) != before[i]) return false;
  return true;
}

inline bool same_values(const Python& python, PyObject* dict, PyObject* const* before, intptr_t count) {
  if (python.dict_size(dict) != count) return false;
  intptr_t position = 0;
  PyObject *key, *value;
  while (python.dict_next(dict, &position, &key, &value))
    if (*before++ != value) return false;
  return true;
}

// A value in a state dict. Those that are not the optimizer's own have no object: they may be anything.
struct Held {
  PyObject* object;
  int64_t column;  // of the table, which has its address; -1 for a tensor that the kernels do not read
  uint64_t fingerprint;
  const char* impl;  // what its C++ tensor points to
};

// What `refresh` compares with: one entry per row, and the values of all state dicts in their order.
struct Record {
  PyObject *const *params, *const *states;
  const uint64_t* fingerprints;  // of the parameters
  const int64_t* ends;           // the number of held values in rows 0..i
  const Held* held;
  int64_t rows, width;
  int64_t read_only;  // the column of a tensor that the kernels do not write
};

// Whether a state dict is as it was; raises the versions of what the kernels write.
inline bool same_state(const Torch& torch, PyObject* dict, const Held* held, const Held* end, void* const* row,
                       int64_t read_only) {
  if (torch.python.dict_size(dict) != end - held) return false;
  intptr_t position = 0;
  PyObject *key, *value;
  for (; torch.python.dict_next(dict, &position, &key, &value); ++held) {
    if (!held->object) continue;
    Tensor x;
    if (value != held->object || !describe(torch, handle(torch, value), &x) || x.fingerprint != held->fingerprint ||
        (held->column >= 0 && x.data != row[held->column]))
      return false;
    if (held->column >= 0 && held->column != read_only) torch.bump_version(handle(torch, value));
  }
  return true;
}

struct Device {
  int32_t type, index;
};

inline bool device_of(const Torch& torch, const void* x, Device* to) {
  return !torch.device_type(x, &to->type) && !torch.device_index(x, &to->index);
}

// A gradient if it is strided, no wrapper, and on the device; else null. A missing one is on no device.
inline const void* checked(const Torch& torch, const void* g, const Device& device) {
  Device found;
  const bool fits = !torch.has_dispatch(g) && torch.has_storage(*static_cast<const void* const*>(g)) &&
                    device_of(torch, g, &found) && found.type == device.type && found.index == device.index;
  return fits ? g : nullptr;
}

// Asks for the memory of a row's states ahead of time: after a forward and a backward pass none of it is in a cache, and
// raising a version waits for its miss. torch allocates a tensor's storage, the tensor, and its version one after the
// other, as a rule. A stale address does no harm. GCC leaves out a call of a function that does nothing else, so it is
// inlined.
RULE_FN void prefetch(const Record& r, intptr_t row) {
#ifdef __GNUC__  // and Clang
  __builtin_prefetch(r.states[row]);
  __builtin_prefetch(r.params[row]);
  for (const Held *x = r.held + r.ends[row - 1], *end = r.held + r.ends[row]; x < end; ++x) {
    if (!x->object) continue;
    __builtin_prefetch(x->object);
    for (int line = -128; line <= 256; line += 64) __builtin_prefetch(x->impl + line);
  }
#endif
}

// Checks that the rows of a table, `width` pointers {parameter, gradient, ...} each, still describe the tensors they
// were made from, takes over the parameters' present gradients, and tells autograd that a step changes the rest. Returns
// the number of rows in order; what is wrong with the next one is for the caller to find out. Gradients are `grads`, or
// else the parameters' own, read from the C++ tensors: Python's attribute would make an object for each new one.
inline intptr_t refresh(const Torch& torch, const Record& r, void** row, PyObject* const* grads) {
  Device device;
  if (!r.rows || !device_of(torch, handle(torch, r.params[0]), &device)) return 0;
  const Held* held = r.held;
  constexpr intptr_t ahead = 2;
  for (intptr_t i = 0; i < r.rows; ++i, row += r.width) {
    if (i + ahead < r.rows) prefetch(r, i + ahead);
    const void* param = handle(torch, r.params[i]);
    const void* given = grads ? handle(torch, grads[i]) : torch.grad(*static_cast<const void* const*>(param));
    const void* grad = checked(torch, given, device);
    const Held* end = r.held + r.ends[i];
    Tensor p, g;
    if (!grad || !describe(torch, grad, &g) || !describe(torch, param, &p) || p.data != row[0] ||
        p.fingerprint != r.fingerprints[i] || g.fingerprint != p.fingerprint ||
        !same_state(torch, r.states[i], held, end, row, r.read_only))
      return i;
    torch.bump_version(param);
    held = end;
    row[1] = g.data;
  }
  return r.rows;
}

// The same for the first step of a table, which nobody refreshes. False where torch refuses.
inline bool bump_versions(const Torch& torch, const Record& r) {
  try {
    for (int64_t i = 0; i < r.rows; ++i) torch.bump_version(handle(torch, r.params[i]));
    for (const Held *x = r.held, *end = r.held + (r.rows ? r.ends[r.rows - 1] : 0); x < end; ++x)
      if (x->object && x->column >= 0 && x->column != r.read_only) torch.bump_version(handle(torch, x->object));
  } catch (...) {  // no exception may pass through ctypes
    return false;
  }
  return true;
}

}  // namespace tensors
