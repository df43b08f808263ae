// The one argument of a kernel: a head and what it is about, which is of any number.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

namespace fused_optim::cuda {

/// Calls visit(table) with a kernel's argument: the smaller of two tables that holds the items, of
/// which there are no more than the larger one has. What lies beyond them is not set, and no kernel
/// reads it.
template <class Small, class Large, class Head, class Item, class Visit>
void as_argument(const Head& head, const std::vector<Item>& items, Visit visit) {
  const auto visit_as = [&]<class Table>(std::type_identity<Table>) {
    Table table;
    table.head = head;
    std::copy(items.begin(), items.end(), table.items());
    visit(table);
  };
  if (items.size() <= Small::kItems)
    visit_as(std::type_identity<Small>());
  else
    visit_as(std::type_identity<Large>());
}

}  // namespace fused_optim::cuda
