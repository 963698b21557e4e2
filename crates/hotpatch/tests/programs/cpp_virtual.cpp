// A virtual function of an object that exists, called by way of its table.
// build: g++ -O2 $FLAGS -o program cpp_virtual.cpp
// old: 10 4
// new: 9 4
// switched: _ZNK6Square4areaEv
#include "program.h"

struct Shape { virtual ~Shape() {} virtual int area() const = 0; virtual int edges() const { return 0; } };
struct Square : Shape {
    int side = 3;
    int area() const override;
    int edges() const override { return 4; }
};
#ifdef FIXED
APART int Square::area() const { return side * side; }
#else
APART int Square::area() const { return side * side + 1; }
#endif
static Shape *shape;
void answer(char *out, size_t size) {
    if (!shape) shape = new Square;
    Shape *any = shape;
    asm volatile("" : "+r"(any));
    snprintf(out, size, "%d %d", any->area(), any->edges());
}
