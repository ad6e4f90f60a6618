// What a container's limit leaves of the processors.
#pragma once

#include <string>

namespace fastrnn {

// Processors whose time the control groups of this process allow it, rounded up; INT_MAX if they
// set no limit. Read once.
int processors_allowed();

// `root`: the folder that holds proc and sys.
int processors_allowed(const std::string& root);

}  // namespace fastrnn
