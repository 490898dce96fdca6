#include "engine/pass.h"

#include <span>
#include <utility>

namespace nibble {

PassRunner::PassRunner(const Parts& parts, std::vector<ArenaSlot> slots) : p_(parts), slots_(std::move(slots)) {}

std::int64_t PassRunner::rows_of(const BufferDesc& buffer, const Pass& pass) const {
  switch (buffer.rows) {
    case RowSet::tokens:
      return pass.map.rows;
    case RowSet::logits:
      return pass.logits;
    case RowSet::frames:
      return pass.frame_begin[buffer.stages].back();
    case RowSet::patches:
      break;
  }
  return pass.images * p_.program->image->patches();
}

MatrixRef PassRunner::matrix(BufferId id, const Pass& pass) const {
  const BufferDesc& desc = p_.program->buffers[static_cast<std::size_t>(id)];
  const ArenaSlot& slot = slots_[static_cast<std::size_t>(id)];
  MatrixRef ref;
  ref.data = p_.arena + slot.offset;
  ref.dtype = slot.dtype;
  ref.columns = desc.columns;
  ref.stride = slot.stride;
  ref.rows = rows_of(desc, pass);
  // The logits of all sequences stay until the next call, so a pass writes those of its own sequences only.
  if (id == p_.program->logits && !p_.program->encoder)
    ref.data = static_cast<float*>(ref.data) + pass.first_sequence * desc.columns;
  return ref;
}

bool PassRunner::takes_attention(const LoweredNode& lowered, const Pass& pass) const {
  return lowered.attention && pass.tiles.tiles > 0;
}

bool PassRunner::skips(std::size_t index, const Pass& pass) const {
  if (index > 0 && takes_attention((*p_.nodes)[index - 1], pass)) return true;
  const std::vector<BufferId> writes = (*p_.nodes)[index].writes();
  const BufferId out = writes.empty() ? p_.program->hidden_state : writes.front();
  return p_.program->buffers[static_cast<std::size_t>(out)].rows == RowSet::logits && pass.logits == 0;
}

void PassRunner::enqueue_linear(const LoweredNode& lowered, const PackedLinear& packed, const Pass& pass) const {
  const LinearNode& node = *lowered.linear();
  LinearArgs args;
  args.x = matrix(lowered.norm ? lowered.norm->x : node.x, pass);
  args.rows = args.x.rows;
  if (lowered.norm) args.norm_weight = p_.weights->norm(lowered.norm->weight);
  args.workspace = p_.scratch;
  std::vector<MatrixRef> y;
  if (takes_attention(lowered, pass)) {
    const SelfAttentionNode& attention = *lowered.attention;
    y = {matrix(attention.y, pass)};
    args.y = y;
    lowered.kernel->attend(packed, args, {attention.heads, attention.scale, attention.causal, pass.tiles}, *p_.stream);
    return;
  }
  if (lowered.add) {
    y = {matrix(lowered.add->y, pass)};
    args.residual = matrix(lowered.add->a == node.y[0] ? lowered.add->b : lowered.add->a, pass);
  } else if (lowered.gated) {
    y = {matrix(lowered.gated->y, pass)};
  } else if (lowered.activation) {
    y = {matrix(lowered.activation->y, pass)};
  } else {
    y.reserve(node.y.size());
    for (const BufferId id : node.y) y.push_back(matrix(id, pass));
  }
  args.y = y;
  if (parts_of(lowered, pass) > 1) args.parts = reinterpret_cast<float*>(p_.parts);
  lowered.kernel->enqueue(packed, args, *p_.stream);
}

int PassRunner::parts_of(const LoweredNode& product, const Pass& pass) const {
  if (!product.in_parts) return 1;
  return product.kernel->parts(product.site, matrix(product.linear()->x, pass).rows, p_.backend->device().info());
}

// What a product left in parts takes the place of the addend that it would have been.
void PassRunner::take_parts(const LoweredNode& product, const LoweredNode& norm, const Pass& pass,
                            NormArgs& args) const {
  const int parts = parts_of(product, pass);
  if (parts == 1) return;
  if (norm.before->b == product.linear()->y.front()) std::swap(args.x, args.addend);
  args.x_parts = reinterpret_cast<const float*>(p_.parts);
  args.parts = parts;
}

void PassRunner::enqueue_norm(std::size_t index, const NormNode& node, const Pass& pass) const {
  const LoweredNode& lowered = (*p_.nodes)[index];
  NormArgs args{node.kind,
                matrix(lowered.before ? lowered.before->a : node.x, pass),
                node.groups,
                p_.weights->norm(node.weight),
                node.bias.empty() ? nullptr : p_.weights->norm(node.bias),
                node.eps,
                matrix(node.y, pass)};
  if (lowered.before) {
    args.addend = matrix(lowered.before->b, pass);
    if (lowered.keeps_sum) args.sum = matrix(lowered.before->y, pass);
    if (lowered.in_parts) take_parts((*p_.nodes)[index - 1], lowered, pass, args);
  }
  p_.backend->norm(args, *p_.stream);
}

void PassRunner::enqueue_embed(const EmbedNode& node, const Pass& pass) const {
  EmbedArgs args;
  args.map = pass.map;
  args.table = p_.weights->table(node.table);
  args.scale = node.scale;
  args.y = matrix(node.y, pass);
  if (!node.positions.empty()) {
    args.positions = p_.weights->table(node.positions);
    args.position_offset = node.position_offset;
  }
  if (!node.types.empty()) args.types = p_.weights->table(node.types);
  p_.backend->embed(args, *p_.stream);
}

void PassRunner::enqueue_patches(const PatchNode& node, const Pass& pass) const {
  const ImageShape& shape = *p_.program->image;
  p_.backend->cut_patches({pass.pixels, pass.images, shape.channels, shape.size, shape.patch, matrix(node.y, pass)},
                          *p_.stream);
}

void PassRunner::enqueue_place(const PlaceNode& node, const Pass& pass) const {
  PlaceArgs args;
  args.images = pass.images;
  for (std::size_t i = 0; i < node.leading.size(); ++i) args.leading.at(i) = p_.weights->table(node.leading[i]);
  args.positions = p_.weights->table(node.positions);
  args.x = matrix(node.x, pass);
  args.y = matrix(node.y, pass);
  p_.backend->place_patches(args, *p_.stream);
}

void PassRunner::enqueue_convolve(const LoweredNode& lowered, const Pass& pass) const {
  const auto& node = std::get<ConvolveNode>(lowered.node.op);
  const auto begin = [&](BufferId id) -> std::span<const std::int64_t> {
    const BufferDesc& desc = p_.program->buffers[static_cast<std::size_t>(id)];
    return desc.rows == RowSet::frames ? pass.frame_begin[desc.stages] : pass.token_begin;
  };
  ConvolveArgs args;
  if (node.x < 0) {
    args.x_begin = pass.frame_begin.front();
    args.x = pass.steps;
  } else {
    args.x_begin = begin(node.x);
    args.x = matrix(node.x, pass);
  }
  const BufferId y = lowered.activation ? lowered.activation->y : node.y;
  args.y_begin = begin(y);
  args.y = matrix(y, pass);
  args.workspace = p_.scratch;
  const auto of_tokens = [&](BufferId id) {
    return id >= 0 && p_.program->buffers[static_cast<std::size_t>(id)].rows == RowSet::tokens;
  };
  if (of_tokens(node.x) && of_tokens(y)) args.begin = pass.map.row_begin;
  p_.backend->convolve(p_.weights->convolution(node.module), args, *p_.stream);
}

void PassRunner::enqueue_instance_norm(const LoweredNode& lowered, const InstanceNormNode& node,
                                       const Pass& pass) const {
  const std::size_t stages = p_.program->buffers[static_cast<std::size_t>(node.x)].stages;
  InstanceNormArgs args;
  args.x = matrix(node.x, pass);
  args.begin = pass.frame_begin[stages];
  args.rows = pass.frames[stages];
  args.weight = p_.weights->norm(node.module + ".weight");
  args.bias = p_.weights->norm(node.module + ".bias");
  args.eps = node.eps;
  args.y = matrix(lowered.activation ? lowered.activation->y : node.y, pass);
  if (lowered.activation) args.activation = lowered.activation->activation;
  p_.backend->instance_norm(args, *p_.stream);
}

void PassRunner::enqueue_gather(const GatherNode& node, const Pass& pass) const {
  MatrixRef from = matrix(node.x, pass);
  from.data =
      static_cast<std::byte*>(from.data) + static_cast<std::size_t>(node.after * from.stride) * bytes_of(from.dtype);
  from.rows -= node.after;
  p_.backend->gather_rows(from, pass.logit_rows, matrix(node.y, pass), *p_.stream);
}

void PassRunner::enqueue_self_attention(const SelfAttentionNode& node, const Pass& pass) const {
  SelfAttentionArgs args;
  args.map = pass.map;
  args.q = matrix(node.q, pass);
  args.k = matrix(node.k, pass);
  args.v = matrix(node.v, pass);
  args.heads = node.heads;
  args.scale = node.scale;
  args.causal = node.causal;
  args.compute = p_.compute;
  args.valid = pass.valid;
  if (!node.bias.empty()) {
    args.bias = p_.weights->distance_bias(node.bias);
    args.bias_reach = node.bias_distance;
  }
  args.materialise = p_.materialise;
  args.length = pass.length;
  args.y = matrix(node.y, pass);
  args.workspace = p_.scratch;
  p_.backend->self_attention(args, *p_.stream);
}

bool PassRunner::enqueue(std::size_t index, const Pass& pass) const {
  const LoweredNode& lowered = (*p_.nodes)[index];
  const auto& op = lowered.node.op;
  Backend& ops = *p_.backend;
  Stream& s = *p_.stream;
  if (lowered.linear() != nullptr) {
    enqueue_linear(lowered, p_.weights->packed(index), pass);
  } else if (const auto* embed = std::get_if<EmbedNode>(&op)) {
    enqueue_embed(*embed, pass);
  } else if (const auto* norm = std::get_if<NormNode>(&op)) {
    enqueue_norm(index, *norm, pass);
  } else if (const auto* attention = std::get_if<SelfAttentionNode>(&op)) {
    enqueue_self_attention(*attention, pass);
  } else if (const auto* activation = std::get_if<ActivationNode>(&op)) {
    ops.activation(activation->activation, matrix(activation->x, pass), matrix(activation->y, pass), s);
  } else if (const auto* gated = std::get_if<GatedNode>(&op)) {
    ops.gated_activation(gated->activation, matrix(gated->gate, pass), matrix(gated->up, pass), matrix(gated->y, pass),
                         s);
  } else if (const auto* add = std::get_if<AddNode>(&op)) {
    ops.add(matrix(add->a, pass), matrix(add->b, pass), matrix(add->y, pass), s);
  } else if (const auto* gather = std::get_if<GatherNode>(&op)) {
    enqueue_gather(*gather, pass);
  } else if (const auto* patches = std::get_if<PatchNode>(&op)) {
    enqueue_patches(*patches, pass);
  } else if (const auto* place = std::get_if<PlaceNode>(&op)) {
    enqueue_place(*place, pass);
  } else if (std::holds_alternative<ConvolveNode>(op)) {
    enqueue_convolve(lowered, pass);
  } else if (const auto* over_time = std::get_if<InstanceNormNode>(&op)) {
    enqueue_instance_norm(lowered, *over_time, pass);
  } else if (const auto* trim = std::get_if<TrimNode>(&op)) {
    ops.trim_frames({matrix(trim->x, pass), pass.last_begin, pass.kept, matrix(trim->y, pass), pass.map.row_begin,
                     pass.map.sequences},
                    s);
  } else if (const auto* mean = std::get_if<MeanNode>(&op)) {
    ops.mean(matrix(mean->a, pass), matrix(mean->b, pass), matrix(mean->y, pass), s);
  } else {
    return false;
  }
  return true;
}

}  // namespace nibble
