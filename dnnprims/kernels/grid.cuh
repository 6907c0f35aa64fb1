// What every kernel begins with from sm_90 on (runtime/compiler.py writes it in): programmatic dependent launch.
//
// The next kernel of the stream may have its blocks placed once all of this one's have begun, as far as there is room;
// and this one reads and writes nothing before those in front of it are done and what they wrote can be seen. So no
// kernel sees another order than without, and the gap between two is gone. A launch that does not ask for it
// (runtime/early.py does) makes both instructions do nothing.
#pragma once

__device__ __forceinline__ void enter_grid() {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
