#include "npy.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "base/dtypes.h"

namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error(path + ": " + what);
}

// What stands behind 'key': in the dictionary of the header, up to one of `ends`.
std::string field(const std::string& path, const std::string& header, const char* key,
                  const char* ends) {
  const std::string quoted = std::string("'") + key + "':";
  const size_t at = header.find(quoted);
  const size_t first =
      at == std::string::npos ? at : header.find_first_not_of(" '(", at + quoted.size());
  const size_t last = first == std::string::npos ? first : header.find_first_of(ends, first);
  if (last == std::string::npos) fail(path, "its header is not NumPy's: " + header.substr(0, 80));
  return header.substr(first, last - first);
}

}  // namespace

Array read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path, "cannot be opened");
  file.peek();
  if (file.bad()) fail(path, "cannot be read");  // a directory, which can be opened
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])); };
  if (bytes.size() < 12 || bytes.compare(0, 6, "\x93NUMPY") != 0) fail(path, "is no .npy file");
  const bool first = byte(6) == 1;  // version 1 has two bytes for the length of the header
  const size_t start = first ? 10 : 12;
  size_t length = byte(8) | byte(9) << 8;
  if (!first) length |= byte(10) << 16 | byte(11) << 24;
  if (length > bytes.size() - start) fail(path, "is cut short in its header");
  const std::string header = bytes.substr(start, length);
  const std::string type = field(path, header, "descr", "'");
  if (type != "<f4") fail(path, "holds " + type + "; expected '<f4' (numpy.float32)");
  if (field(path, header, "fortran_order", ",}") != "False") {
    fail(path, "is in Fortran order; save numpy.ascontiguousarray of it");
  }
  Array array;
  int64_t numel = 1;
  std::istringstream shape(field(path, header, "shape", ")"));
  for (std::string size; std::getline(shape, size, ',');) {
    if (size.find_first_not_of(' ') == std::string::npos) continue;  // behind the last comma
    const int64_t value = std::strtoll(size.c_str(), nullptr, 10);
    if (value < 0 || value > INT32_MAX || (value > 0 && numel > INT32_MAX / value)) {
      fail(path, "is too large: its shape has" + size);
    }
    array.shape.push_back(value);
    numel *= value;
  }
  const size_t data = start + length;
  if (bytes.size() - data < static_cast<size_t>(numel) * 4) fail(path, "is cut short in its data");
  for (size_t i = data; i < data + static_cast<size_t>(numel) * 4; i += 4) {
    const uint32_t bits = byte(i) | byte(i + 1) << 8 | byte(i + 2) << 16 | byte(i + 3) << 24;
    array.data.push_back(ddi::float_of(bits));
  }
  return array;
}

void write_npy(const std::string& path, const Array& array) {
  std::string shape;
  for (const int64_t size : array.shape) shape += std::to_string(size) + ", ";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  for (const float v : array.data) {
    const uint32_t bits = ddi::bits_of(v);
    for (int i = 0; i < 4; ++i) bytes += static_cast<char>(bits >> (8 * i) & 0xff);
  }
  const std::string part = path + ".part";  // nobody sees half a file
  std::ofstream file(part, std::ios::binary);
  file << bytes;
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) fail(path, "cannot be written");
}
