// A virtual function more: objects that exist lead to the old table, which has no place for it.
// build: g++ -O2 $FLAGS -o program cpp_refused_virtual.cpp
// old: 1
// refused: layout its size was 32 and is 40: objects that exist lead to the old table
// allowed:
#include "program.h"

struct Shape {
    virtual ~Shape() {}
#ifdef FIXED
    APART virtual int edges() const { return 4; }
#else
    APART int edges() const { return 1; }
#endif
};
static Shape *shape;
APART int edges(const Shape *shape) { return shape->edges(); }
void answer(char *out, size_t size) {
    if (!shape) shape = new Shape;
    snprintf(out, size, "%d", edges(shape));
}
