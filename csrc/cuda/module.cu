// The Python module ddi_kernels._C_cuda: importing it registers the CUDA operators (static objects
// of the other files here). Limited API, so that one build serves every Python from 3.11 on.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace {

PyModuleDef kModule = {PyModuleDef_HEAD_INIT,
                       "_C_cuda",
                       "CUDA operators of ddi_kernels.",
                       -1,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda(void) { return PyModule_Create(&kModule); }
