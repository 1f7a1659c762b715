// Reads the addresses of torch tensors from Python objects, several hundred in some tens of microseconds,
// without torch headers: through DLPack's C exchange API (a table of C functions that torch publishes as
// torch.Tensor.__dlpack_c_exchange_api__, version 1.3) and a few functions of Python's stable ABI.
#pragma once
#include <cstdint>

extern "C" {
struct _object;
typedef struct _object PyObject;
PyObject* PyObject_GetAttr(PyObject* object, PyObject* name);
intptr_t PyList_Size(PyObject* list);
PyObject* PyList_GetItem(PyObject* list, intptr_t index);
intptr_t PyDict_Size(PyObject* dict);
int PyDict_Next(PyObject* dict, intptr_t* position, PyObject** key, PyObject** value);
void Py_DecRef(PyObject* object);
void PyErr_Clear(void);
}

namespace tensors {

struct DLTensor {  // dlpack.h, DLTensor
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

using Reader = int (*)(void* py_object, DLTensor* out);  // dltensor_from_py_object_no_sync

inline char* address(const DLTensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

inline bool same_layout(const DLTensor& a, const DLTensor& b) {
  if (a.ndim != b.ndim || a.code != b.code || a.bits != b.bits || a.device_type != b.device_type ||
      a.device_id != b.device_id)
    return false;
  for (int32_t d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || (a.shape[d] != 1 && a.strides[d] != b.strides[d])) return false;
  return true;
}

// A number that changes with the shape and the strides; optim/native.py computes the same.
inline uint64_t fingerprint(const DLTensor& t) {
  uint64_t h = 0;
  for (int32_t d = 0; d < t.ndim; ++d) h = (h * 1000003 + uint64_t(t.shape[d])) * 1000003 + uint64_t(t.strides[d]);
  return h;
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

// Checks that the rows of a table, `width` pointers {parameter, gradient, ...} each, still describe the
// tensors they were made from, and takes over the parameters' present gradients. `held` lists the `per_state`
// values of every state dict as they were. Returns the number of rows in order; what is wrong with the next
// one is for the caller to find out.
inline intptr_t refresh(PyObject* const* params, PyObject* const* states, PyObject* const* held, PyObject* grad,
                        intptr_t rows, intptr_t width, intptr_t per_state, Reader read, const uint64_t* fingerprints,
                        void** table) {
  for (intptr_t i = 0; i < rows; ++i, table += width, held += per_state) {
    DLTensor p, g;
    PyObject* gradient = PyObject_GetAttr(params[i], grad);
    const bool readable = gradient && !read(params[i], &p) && !read(gradient, &g);
    if (gradient) Py_DecRef(gradient);  // the parameter keeps it alive
    if (!readable) {
      PyErr_Clear();
      return i;
    }
    if (address(p) != table[0] || fingerprint(p) != fingerprints[i] || !same_layout(p, g) ||
        !same_values(states[i], held, per_state))
      return i;
    table[1] = address(g);
  }
  return rows;
}

}  // namespace tensors
