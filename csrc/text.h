// An operator's str argument.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>

#include "checks.h"

namespace fastrnn {

// Not std::string: torch's own conversion to that leaked one with every call up to torch 2.13
// (pytorch issue 191340), from a header that is compiled in here.
struct Text : std::string {
  using std::string::string;
};

}  // namespace fastrnn

template <>
struct torch::stable::detail::ToImpl<fastrnn::Text> {
  static fastrnn::Text call(StableIValue value, std::uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);  // ours to delete
    std::size_t length;
    const char* data;
    const bool read =
        torch_string_length(handle, &length) == 0 && torch_string_c_str(handle, &data) == 0;
    fastrnn::check(read, "a text argument could not be read");
    const fastrnn::Text text(data, length);
    fastrnn::check(torch_delete_string(handle) == 0, "a text argument could not be freed");
    return text;
  }
};
