#include "cuda/fill_tables.h"

#include "rules/registry.h"
#include "step/entry_values.h"

namespace fused_optim::cuda {
namespace {

/// Collects rows, entries and layouts of one launch until its words are used up.
class TableFiller {
 public:
  TableFiller(const Bucket& bucket, const DeviceInputs& inputs)
      : bucket_(bucket),
        spec_(kRules[bucket.table->rule]),
        num_one_element_(spec_.num_one_element - (spec_.has_step ? 1 : 0)),
        inputs_(inputs) {
    operands_ = {kParam, kGrad};
    for (int state = 0; state < kMaxStates; ++state)
      if (has_state(bucket.first().mask, state)) operands_.push_back(state_operand(state));
    if (bucket.table->zero_grads) flags_ |= TableHead::kZeroGrads;
    if (is_averaged()) flags_ |= TableHead::kAverages;
  }

  std::vector<FilledTable> run() {
    for (int64_t i = 0; i < bucket_.num_entries; ++i) add(*bucket_.entries[i]);
    flush();
    return std::move(tables_);
  }

 private:
  int num_operands() const { return static_cast<int>(operands_.size()); }
  bool is_averaged() const { return bucket_.first().is_averaged(); }
  KernelKind kind() const { return bucket_.first().kernel_kind(); }
  int entry_size() const {
    return EntryView::size(num_operands(), num_one_element_, is_averaged(), kind(), spec_.has_step);
  }

  void add(const TensorEntry& entry) {
    const std::vector<uint64_t> layout = layout_words(entry);
    const size_t row = last_row_ == entry.row ? 0 : RowView::size(spec_.num_hyperparameters);
    const size_t chunk_ends = chunk_ends_.size() / 2 + 1;
    const size_t needed = chunk_ends + row + entry_size() + layout.size();
    if (rows_.size() + entries_.size() + layouts_.size() + needed > KernelTable::kItems) flush();
    if (last_row_ != entry.row) add_row(entry.row);

    for (int operand : operands_) entries_.push_back(address(entry, operand));
    entries_.push_back(entry.device_step != nullptr ? reinterpret_cast<uint64_t>(entry.device_step)
                                                    : bits_as<uint64_t>(entry.step));
    entries_.push_back(static_cast<uint64_t>(entry.numel));
    if (!layout.empty()) strided_.push_back({entries_.size(), layouts_.size()});
    const OneElementSpan states = beside_step(*bucket_.table, entry);
    // The layout's word is known once all before it have their places.
    entries_.push_back(
        EntryView::word_of(num_rows_ - 1, 0, flags_of(entry, states), unaligned_operands(entry)));
    for (int i = 0; i < num_one_element_; ++i)
      entries_.push_back(reinterpret_cast<uint64_t>(states.states[i].data));
    if (is_averaged()) entries_.push_back(address(entry, kAverage));
    if (kind() != KernelKind::Uniform) entries_.push_back(formats_of(entry));
    if (kind() == KernelKind::Compact) add_compact(bucket_.table->compact[entry.compact]);
    layouts_.insert(layouts_.end(), layout.begin(), layout.end());
    chunks_ += static_cast<uint32_t>((entry.numel + kChunk - 1) / kChunk);
    chunk_ends_.push_back(chunks_);
  }

  /// What cuda/kernel_table.h's CompactView reads.
  void add_compact(const CompactEntry& compact) {
    uint32_t stochastic = 0;
    for (size_t i = 0; i < operands_.size(); ++i) {
      if (operands_[i] != kGrad) entries_.push_back(address(compact, operands_[i]));
      if (compact.is_stochastic(operands_[i])) stochastic |= 1u << i;
    }
    const OneElementState& counter = compact.counter;
    entries_.push_back(compact.key);
    entries_.push_back(CompactView::word_of(static_cast<uint32_t>(compact.first_index), stochastic,
                                            counter.is_on_device));
    if (!spec_.has_step)
      entries_.push_back(counter.is_on_device ? reinterpret_cast<uint64_t>(counter.data)
                                              : bits_as<uint64_t>(counter.after));
  }

  static uint64_t address(const TensorEntry& entry, int operand) {
    return reinterpret_cast<uint64_t>(entry.operands[operand]);
  }
  static uint64_t address(const CompactEntry& compact, int operand) {
    return reinterpret_cast<uint64_t>(compact.sides[operand]);
  }

  uint64_t formats_of(const TensorEntry& entry) const {
    uint64_t formats = static_cast<uint64_t>(entry.formats[kAverage]) << (8 * operands_.size());
    for (size_t i = 0; i < operands_.size(); ++i)
      formats |= static_cast<uint64_t>(entry.formats[operands_[i]]) << (8 * i);
    return formats;
  }

  static uint32_t flags_of(const TensorEntry& entry, const OneElementSpan& states) {
    uint32_t flags = entry.device_step != nullptr ? EntryView::kDeviceStep : 0;
    if (states.count > 0)
      flags |= static_cast<uint32_t>(states.states[0].format) << EntryView::kFormatShift;
    return flags;
  }

  /// A bit for each operand that does not begin on a 16-byte boundary, or whose side doesn't, the
  /// average's last.
  uint32_t unaligned_operands(const TensorEntry& entry) const {
    const CompactEntry beside =
        entry.is_compact() ? bucket_.table->compact[entry.compact] : CompactEntry();
    uint32_t unaligned = 0;
    for (size_t i = 0; i < operands_.size(); ++i)
      if ((address(entry, operands_[i]) | address(beside, operands_[i])) % 16 != 0)
        unaligned |= 1u << i;
    if (address(entry, kAverage) % 16 != 0) unaligned |= 1u << operands_.size();
    return unaligned;
  }

  void add_row(int32_t index) {
    const HyperparameterRow& row = bucket_.table->rows[index];
    rows_.push_back(bits_as<uint64_t>(bucket_.table->grad_multiplier(row)));
    uint64_t on_device = 0;
    for (int i = 0; i < spec_.num_hyperparameters; ++i)
      if (row.addresses[i] != nullptr) on_device |= uint64_t{1} << i;
    rows_.push_back(on_device | static_cast<uint64_t>(row.are_doubles) << 32);
    for (int i = 0; i < spec_.num_hyperparameters; ++i)
      rows_.push_back(row.addresses[i] != nullptr ? reinterpret_cast<uint64_t>(row.addresses[i])
                                                  : bits_as<uint64_t>(row.values[i]));
    last_row_ = index;
    ++num_rows_;
  }

  std::vector<uint64_t> layout_words(const TensorEntry& entry) const {
    if (entry.strided < 0) return {};
    const StridedLayout& layout = bucket_.table->strided[entry.strided];
    const size_t dims = layout.sizes.size();
    std::vector<uint64_t> words{dims};
    words.insert(words.end(), layout.sizes.begin(), layout.sizes.end());
    std::vector<int> operands = operands_;
    if (is_averaged()) operands.push_back(kAverage);
    for (int operand : operands) {
      std::vector<int64_t> strides = layout.strides[operand];
      if (strides.empty()) {  // it lies as the parameter does: dense in this very order
        strides.assign(dims, 1);
        for (size_t dim = dims - 1; dim-- > 0;)
          strides[dim] = strides[dim + 1] * layout.sizes[dim + 1];
      }
      words.insert(words.end(), strides.begin(), strides.end());
    }
    return words;
  }

  void flush() {
    if (entries_.empty()) return;
    std::vector<uint64_t> chunk_ends((chunk_ends_.size() + 1) / 2);
    for (size_t i = 0; i < chunk_ends_.size(); ++i)
      chunk_ends[i / 2] |= static_cast<uint64_t>(chunk_ends_[i]) << (i % 2 * 32);
    const size_t first_entry = chunk_ends.size() + rows_.size();
    const uint64_t layouts_at = first_entry + entries_.size();
    for (const auto& [word, offset] : strided_)
      entries_[word] |= EntryView::word_of(0, static_cast<uint32_t>(layouts_at + offset), 0, 0);
    FilledTable& table = tables_.emplace_back();
    table.head = {inputs_.found_inf,
                  inputs_.grad_scale,
                  inputs_.decision,
                  bucket_.table->ema_weight,
                  flags_,
                  static_cast<uint32_t>(chunk_ends_.size()),
                  chunks_,
                  static_cast<uint32_t>(chunk_ends.size()),
                  static_cast<uint32_t>(first_entry),
                  TableHead::kNoStepsToAdvance};
    table.words.reserve(layouts_at + layouts_.size());
    for (auto* part : {&chunk_ends, &rows_, &entries_, &layouts_}) {
      table.words.insert(table.words.end(), part->begin(), part->end());
      part->clear();
    }
    chunk_ends_.clear();
    strided_.clear();
    last_row_ = -1;
    num_rows_ = chunks_ = 0;
  }

  struct StridedEntry {
    uint64_t word, offset;
  };

  const Bucket& bucket_;
  const RuleSpec& spec_;
  const int num_one_element_;  // beside the step
  const DeviceInputs inputs_;
  uint32_t flags_ = 0;
  std::vector<int> operands_;
  std::vector<uint32_t> chunk_ends_;
  std::vector<uint64_t> rows_, entries_, layouts_;
  std::vector<StridedEntry> strided_;
  std::vector<FilledTable> tables_;
  int32_t last_row_ = -1;
  uint32_t num_rows_ = 0, chunks_ = 0;
};

}  // namespace

std::vector<FilledTable> fill_tables(const Bucket& bucket, const DeviceInputs& inputs) {
  return TableFiller(bucket, inputs).run();
}

}  // namespace fused_optim::cuda
