// The places of barriers, releases and acquires in the sources; any one can be taken out, to see
// that it is missed.
#pragma once

#include <source_location>
#include <string>
#include <vector>

namespace emulator {

// "file:line kind" of each that has run since they were forgotten.
const std::vector<std::string>& sites();
void forget_sites();

void remove_site(const char* site);  // until the next call; "" removes none

// Whether the one at this place is taken out. `kind` is a constant.
bool removed(const char* kind, const std::source_location& where);

}  // namespace emulator
