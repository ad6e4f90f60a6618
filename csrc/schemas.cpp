// The digest of the schemas that the kernels are written for: text that fastrnn/_library.py looks
// for where the Python module _C, which tells the same, is not there.
#include "build_facts.h"  // written by the build

extern "C" {
extern const char fastrnn_schemas[];
const char fastrnn_schemas[] = FASTRNN_SCHEMAS;
}
