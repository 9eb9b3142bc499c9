#include "testing/emulator_arrays.h"
// The CUDA vocabulary comes after the system's headers, which use some of its words.
#include "testing/crop_flip_on_host.h"

namespace ard::emu {
namespace {

void py_crop_flip(const py::array& images, const py::array& positions,
                  const std::optional<py::array>& seed, const std::optional<py::array>& ids,
                  const std::optional<py::array>& views, const py::array& x, const py::array& view,
                  int64_t count, int32_t channels, int32_t height, int32_t width, int32_t padding,
                  bool flip, int64_t levels, bool channels_last) {
  CropFlipParams p{};
  const int64_t numel = int64_t(channels) * height * width;
  p.batch = positions.size();
  p.images = data_of<uint8_t>(images, "images", count * numel);
  p.positions = data_of<int64_t>(positions, "positions", p.batch);
  p.seed = data_or_null<int64_t>(seed, "seed", 1);
  p.ids = data_or_null<int64_t>(ids, "ids", count);
  p.given = data_or_null<int64_t>(views, "views", p.batch);
  p.x = data_of<float>(x, "x", p.batch * numel);
  p.view = data_of<int64_t>(view, "view", p.batch);
  p.count = count;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.padding = padding;
  unit_scale(levels, &p.scale_high, &p.scale_low);
  p.flip = flip;
  p.channels_last = channels_last;
  crop_flip(p);
}

}  // namespace

void bind_crop_flip(py::module_& m) {
  using py::arg;
  m.def("crop_flip", &py_crop_flip, py::kw_only(), arg("images"), arg("positions"), arg("seed"),
        arg("ids"), arg("views"), arg("x"), arg("view"), arg("count"), arg("channels"),
        arg("height"), arg("width"), arg("padding"), arg("flip"), arg("levels"),
        arg("channels_last"));
}

}  // namespace ard::emu
