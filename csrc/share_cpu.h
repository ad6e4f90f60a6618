// Which sequences a thread takes through the steps.
#pragma once

#include "kernels_cpu.h"
#include "packing_cpu.h"

namespace fastrnn::FASTRNN_ISA {

// Rows that are worth reading weights for, of those that layers that run at once hand on.
constexpr Index handed_rows = 8;

// A segment's sequences in a share, and how many it has in all.
struct Part : Segment {
  Index among;
};

// Either every thread takes sequences of its own through all the steps, with no barrier and nothing
// to fetch from another core; or all threads take all sequences and share the units of each step.
// The former where there are enough sequences to fill tiles, as long as the weights, which each
// core then reads whole in every step, come from a near cache; and steps enough to pay for what of
// them another core packed.
class Share {
 public:
  Share(const Sequence& s, const Team& team, Index weight_bytes)
      : own(team.size > 1 && !s.progress && !s.source && s.batch >= least_sequences * team.size &&
            s.steps >= least_steps && weight_bytes <= near_bytes()),
        team(own ? team.alone() : team),
        begin(own ? sequence_at(s, s.rows * team.rank / team.size) : 0),
        end(own ? sequence_at(s, s.rows * (team.rank + 1) / team.size) : s.batch),
        s_(s) {}

  Part of(const Segment& segment) const {
    Part part{segment, segment.rows};
    const Index skip = larger(begin - segment.sequence, 0);
    part.rows = larger(smaller(segment.rows, end - segment.sequence) - skip, 0);
    part.row += skip, part.sequence += skip;
    if (part.prev >= 0) part.prev += skip;
    if (part.next >= 0) part.next += skip;
    return part;
  }

  // All of a step at once, as if it were one segment.
  Part of_step(Index step) const {
    const Index count = rows_of(s_, step);
    const Index row = count > 0 ? s_.segments[s_.step_begin[step]].row : 0;
    return of({row, 0, count, -1, -1, step, false, false});
  }

  // Whether the threads' sequences are their own.
  const bool own;
  // Those who share a step.
  const Team team;
  // The sequences.
  const Index begin, end;

 private:
  static constexpr Index least_sequences = 4, least_steps = 16;

  static Index rows_of(const Sequence& s, Index step) {
    if (s.step_begin[step] == s.step_begin[step + 1]) return 0;
    const Segment& last = s.segments[s.step_begin[step + 1] - 1];
    return last.sequence + last.rows;
  }

  // The first sequence before which there are as many rows.
  static Index sequence_at(const Sequence& s, Index rows) {
    Index low = 0, high = s.batch;
    while (low < high) {
      const Index middle = (low + high) / 2;
      Index before = 0;
      for (Index step = 0; step < s.steps; ++step) before += smaller(rows_of(s, step), middle);
      if (before < rows)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  const Sequence& s_;
};

}  // namespace fastrnn::FASTRNN_ISA
