// How much of its old state each unit keeps, a vector at a time. Included after sequence.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// At one step.
template <class A>
struct Zoneout {
  using V = Vec<A>;
  static constexpr long kLanes = Lanes<A>::kCount;

  const RecurrentOptions& options;
  long heads, t;

  // visit(block, share, lanes) for blocks of the units of a row: 1 where the state is kept, 0 where not, or the
  // probability in place of a draw.
  template <class Visit>
  FUSEDNN_FN void keep(cells::ZoneoutState state, long track, long b, Range blocks, long units, Visit visit) const {
    const double p = state == cells::kZoneoutH ? options.zoneout_h : options.zoneout_c;
    for (long block = blocks.begin; block < blocks.end; ++block) {
      const long left = units - block * kLanes;
      V share = V{} + static_cast<A>(p);
      if (options.seed != nullptr) {
        bool kept[kLanes];
        draw_zoneout(options.seed[track / heads], dropout_limit(p), cells::zoneout_stream(track % heads, state),
                     options.first + t, b, block * kLanes, kLanes, kept);
        for (long u = 0; u < kLanes; ++u) share[u] = kept[u] ? 1 : 0;
      }
      visit(block, share, Block<false>{static_cast<int>(left < kLanes ? left : kLanes)});
    }
  }
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
