// The new function makes objects of a class that the program has not: its table and type information are in the patch.
// build: g++ -O2 $FLAGS -o program cpp_new_class.cpp
// old: plain 1
// new: derived 2 thrown
// switched: _Z4makePcm
#include "program.h"
#include <memory>
#include <stdexcept>

struct Base { virtual ~Base() {} virtual int number() const { return 1; } };
#ifdef FIXED
struct Derived : Base { int number() const override { return 2; } };
struct Fault : std::runtime_error { using std::runtime_error::runtime_error; };
#endif
APART void make(char *out, size_t size) {
#ifdef FIXED
    std::unique_ptr<Base> base(new Derived);
    asm volatile("" : "+m"(base));
    const char *caught = "";
    try { throw Fault("thrown"); } catch (const std::exception &error) { caught = "thrown"; }
    snprintf(out, size, "%s %d %s", dynamic_cast<Derived *>(base.get()) ? "derived" : "plain", base->number(), caught);
#else
    std::unique_ptr<Base> base(new Base);
    asm volatile("" : "+m"(base));
    snprintf(out, size, "plain %d", base->number());
#endif
}
void answer(char *out, size_t size) { make(out, size); }
