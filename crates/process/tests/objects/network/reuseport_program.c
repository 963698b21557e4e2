// object: a program that chooses among sockets on one port (SO_ATTACH_REUSEPORT_CBPF)
// status: refused: SO_ATTACH_REUSEPORT_CBPF
// note: the kernel does not tell the program again; without one it chooses by the sender's address
#include "object.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(6200), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd[3], on = 1, out = socket(AF_INET, SOCK_DGRAM, 0);
    // By the first byte of the datagram.
    struct sock_filter code[] = {{BPF_LD | BPF_B | BPF_ABS, 0, 0, 0}, {BPF_RET | BPF_A, 0, 0, 0}};
    struct sock_fprog program = {2, code};
    for (int i = 0; i < 3; i++) {
        fd[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        CHECK(setsockopt(fd[i], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
        CHECK(bind(fd[i], (void *)&here, sizeof here) == 0);
    }
    CHECK(setsockopt(fd[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) == 0);
    unsigned char count = 0, bytes[2];
    ready();
    do {
        for (unsigned char i = 0; i < 3; i++) {
            unsigned char message[2] = {i, count};
            CHECK(sendto(out, message, 2, 0, (void *)&here, sizeof here) == 2);
        }
        for (int i = 0; i < 3; i++) {
            CHECK_EQUAL(recv(fd[i], bytes, 2, 0), 2);
            CHECK(bytes[0] == i && bytes[1] == count);
        }
        count++;
    } while (go_on());
    PASS();
}
