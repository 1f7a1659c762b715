// Verifies that the tensors behind a table of addresses are still what the table says, in every step.
//
// No torch headers: Python tensors are read through torch's C interface for ahead-of-time compiled models
// (aoti_torch_get_*, a stable ABI), whose functions Python passes in, and through Python's stable ABI.
#pragma once
#include <cstdint>

extern "C" {
struct _object;
typedef struct _object PyObject;
PyObject* PyObject_GetAttr(PyObject* object, PyObject* name);
PyObject* PyObject_Type(PyObject* object);
intptr_t PyList_Size(PyObject* list);
PyObject* PyList_GetItem(PyObject* list, intptr_t index);
intptr_t PyDict_Size(PyObject* dict);
int PyDict_Next(PyObject* dict, intptr_t* position, PyObject** key, PyObject** value);
void Py_DecRef(PyObject* object);
void PyErr_Clear(void);
}

namespace tensors {

// Functions of torch, which take the address of a C++ tensor; those that return an int return 0 for success.
// optim/native.py fills this in. `handle` is where a Python tensor object holds its C++ tensor, in bytes.
struct Torch {
  int64_t handle;
  int (*data_ptr)(const void*, void**);
  int (*layout)(const void*, int32_t*);
  int (*dtype)(const void*, int32_t*);
  int (*device_type)(const void*, int32_t*);
  int (*device_index)(const void*, int32_t*);
  int (*dim)(const void*, int64_t*);
  int (*sizes)(const void*, int64_t**);
  int (*strides)(const void*, int64_t**);
  bool (*is_neg)(const void*);
  void (*bump_version)(const void*);
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
inline bool describe(const Torch& torch, PyObject* object, Tensor* to) {
  const void* x = handle(torch, object);
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
inline bool same_items(PyObject* list, PyObject* const* before, intptr_t count) {
  if (PyList_Size(list) != count) return false;
  for (intptr_t i = 0; i < count; ++i)
    if (PyList_GetItem(list, i) != before[i]) return false;
  return true;
}

inline bool same_values(PyObject* dict, PyObject* const* before, intptr_t count) {
  if (PyDict_Size(dict) != count) return false;
  intptr_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict, &position, &key, &value))
    if (*before++ != value) return false;
  return true;
}

// A value in a state dict. Those that are not the optimizer's own have no object: they may be anything.
struct Held {
  PyObject* object;
  int64_t column;  // of the table, which has its address; -1 for a tensor that the kernels do not read
  uint64_t fingerprint;
};

// What `refresh` compares with: one entry per row, and the values of all state dicts in their order.
struct Record {
  PyObject *const *params, *const *states;
  const uint64_t* fingerprints;  // of the parameters
  const int64_t* ends;           // the number of held values in rows 0..i
  const Held* held;
  PyObject *grad, *gradient_type;  // the name of the attribute, and what it has to be
  int64_t rows, width;
  int64_t read_only;  // the column of a tensor that the kernels do not write
};

// Whether a state dict is as it was; raises the versions of what the kernels write.
inline bool same_state(const Torch& torch, PyObject* dict, const Held* held, const Held* end, void* const* row,
                       int64_t read_only) {
  if (PyDict_Size(dict) != end - held) return false;
  intptr_t position = 0;
  PyObject *key, *value;
  for (; PyDict_Next(dict, &position, &key, &value); ++held) {
    if (!held->object) continue;
    Tensor x;
    if (value != held->object || !describe(torch, value, &x) || x.fingerprint != held->fingerprint ||
        (held->column >= 0 && x.data != row[held->column]))
      return false;
    if (held->column >= 0 && held->column != read_only) torch.bump_version(handle(torch, value));
  }
  return true;
}

// Whether a gradient is of the type it was, strided, and on the device of its parameter.
inline bool fits(const Torch& torch, PyObject* gradient, PyObject* type, PyObject* param) {
  PyObject* found = PyObject_Type(gradient);
  if (found) Py_DecRef(found);  // the object keeps it alive
  if (found != type) return false;
  const void *g = handle(torch, gradient), *p = handle(torch, param);
  int32_t layout, device[2], index[2];
  return !torch.layout(g, &layout) && !layout && !torch.device_type(g, &device[0]) && !torch.device_type(p, &device[1]) &&
         !torch.device_index(g, &index[0]) && !torch.device_index(p, &index[1]) && device[0] == device[1] &&
         index[0] == index[1];
}

// Checks that the rows of a table, `width` pointers {parameter, gradient, ...} each, still describe the tensors they
// were made from, takes over the parameters' present gradients, and tells autograd that a step changes the rest. Returns
// the number of rows in order; what is wrong with the next one is for the caller to find out.
inline intptr_t refresh(const Torch& torch, const Record& r, void** row) {
  const Held* held = r.held;
  for (intptr_t i = 0; i < r.rows; ++i, row += r.width) {
    Tensor p, g;
    PyObject* gradient = PyObject_GetAttr(r.params[i], r.grad);
    if (gradient) Py_DecRef(gradient);  // the parameter keeps it alive
    if (!gradient || !fits(torch, gradient, r.gradient_type, r.params[i]) || !describe(torch, gradient, &g) ||
        !describe(torch, r.params[i], &p)) {
      PyErr_Clear();
      return i;
    }
    const Held* end = r.held + r.ends[i];
    if (p.data != row[0] || p.fingerprint != r.fingerprints[i] || g.fingerprint != p.fingerprint ||
        !same_state(torch, r.states[i], held, end, row, r.read_only))
      return i;
    torch.bump_version(handle(torch, r.params[i]));
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
