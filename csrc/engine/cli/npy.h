// Arrays of float32 in NumPy's file format
// (numpy.org/devdocs/reference/generated/numpy.lib.format).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// Throws std::runtime_error, saying what is wrong, unless the file holds a C-ordered '<f4' array.
Array read_npy(const std::string& path);
void write_npy(const std::string& path, const Array& array);
