// What a CUDA device offers and whether this library can run on it. device.cu defines these;
// they exist where FASTRNN_CUDA is defined.
#pragma once

namespace fastrnn {

struct DeviceFacts {
  int capability_major;
  int capability_minor;
  int multiprocessors;
  int shared_memory_per_block;  // bytes a kernel can opt in to
  bool has_code;                // this library holds code that runs on the device
  int clusters[4];              // of 2, 4, 8, 16 blocks that run at once; all 0: not known
};

// Fills *facts for CUDA device number `device`; waits for nothing on it.
// Returns a cudaError_t: 0, or the first failure (then *facts is not to be read).
int device_probe(int device, DeviceFacts* facts);

// Queues `rounds` barriers in one kernel: among the blocks of each cluster, or (cluster 0) of all
// `blocks`, through `flag` in its memory; all of them have to run at once. Returns a cudaError_t.
// peak.cu defines it.
int device_barriers(unsigned* flag, int cluster, int blocks, int rounds, void* stream);

// Whether a launch's cudaError_t says that the device does not take it as it is: its blocks, shared
// memory or clusters.
bool device_refuses(int error);

// The text of a cudaError_t; a static string.
const char* device_error_text(int error);

}  // namespace fastrnn
