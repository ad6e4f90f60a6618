// Every compiled cell's sizes, by name.
#pragma once

#include <cstdint>
#include <string>

#include "cells.h"

namespace fastrnn {

struct CellSizes {
  const char* name;
  std::int64_t gates, states, reserve, operand_gates, biases;
  bool shared_gradients;
};

template <class Cell>
constexpr CellSizes sizes_of(const char* name) {
  return {name,
          Cell::gates,
          Cell::states,
          Cell::reserve,
          Cell::operand_gates,
          device::biases<Cell>,
          device::shared_gradients<Cell>};
}

constexpr CellSizes cells[] = {sizes_of<device::Lstm>("lstm"), sizes_of<device::Gru>("gru"),
                               sizes_of<device::GruResetBefore>("gru_reset_before"),
                               sizes_of<device::RnnTanh>("rnn_tanh"),
                               sizes_of<device::RnnRelu>("rnn_relu")};

// Null if there is none of this name.
inline const CellSizes* find_cell(const std::string& name) {
  for (const CellSizes& cell : cells)
    if (name == cell.name) return &cell;
  return nullptr;
}

}  // namespace fastrnn
