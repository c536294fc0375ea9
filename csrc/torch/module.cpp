// The Python module ddi_kernels._C: importing it registers the operators (static objects of the
// other files here), and its few functions ask or set the CPU instruction set. Limited API, so one
// build serves every Python from 3.11 on.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../cpu/base/isa.h"

namespace {

PyObject* name_of(ddi::Isa isa) { return PyUnicode_FromString(ddi::isa_name(isa)); }

// An unknown DDI_CPU_ISA is ignored, but not silently. False if warnings are errors.
bool warn_of_rejected_env() {
  const char* value = ddi::rejected_isa_env();
  return value == nullptr ||
         PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                          "DDI_CPU_ISA='%s' is ignored: expected %s; using %s", value,
                          ddi::isa_names(), ddi::isa_name(ddi::current_isa())) == 0;
}

PyObject* cpu_isa(PyObject*, PyObject*) { return name_of(ddi::current_isa()); }

PyObject* detected_cpu_isa(PyObject*, PyObject*) { return name_of(ddi::detected_isa()); }

PyObject* set_cpu_isa(PyObject*, PyObject* name) {
  if (name == Py_None) {
    ddi::reset_isa();
    return warn_of_rejected_env() ? name_of(ddi::current_isa()) : nullptr;
  }
  const char* text = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (text == nullptr) return nullptr;
  ddi::Isa isa;
  if (!ddi::parse_isa(text, &isa)) {
    return PyErr_Format(PyExc_ValueError, "set_cpu_isa: name is '%s'; expected %s, or None", text,
                        ddi::isa_names());
  }
  if (isa > ddi::detected_isa()) {
    return PyErr_Format(PyExc_ValueError,
                        "set_cpu_isa: name is '%s', but this machine has only '%s'", text,
                        ddi::isa_name(ddi::detected_isa()));
  }
  ddi::override_isa(isa);
  return name_of(isa);
}

PyMethodDef kMethods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS,
     "cpu_isa() -> str\n\nThe instruction set in force, such as 'scalar', 'avx2' or 'neon'."},
    {"detected_cpu_isa", detected_cpu_isa, METH_NOARGS,
     "detected_cpu_isa() -> str\n\nWhat processor and operating system support."},
    {"set_cpu_isa", set_cpu_isa, METH_O,
     "set_cpu_isa(name) -> str\n\nForces an instruction set, for tests. None returns to the "
     "default, which DDI_CPU_ISA sets.\nRaises ValueError if the name is unknown or above the "
     "machine's."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT,
                       "_C",
                       "Compiled operators of ddi_kernels.",
                       -1,
                       kMethods,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  if (!warn_of_rejected_env()) return nullptr;
  return PyModule_Create(&kModule);
}
