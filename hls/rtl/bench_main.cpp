// Clocks the Verilated testbench `bench` until it finishes.
#include "Vbench.h"
#include "verilated.h"

int main(int argc, char **argv) {
    VerilatedContext context;
    context.commandArgs(argc, argv);
    Vbench bench{&context};
    bench.clk = 0;
    while (!context.gotFinish()) {
        bench.eval();
        context.timeInc(1);
        bench.clk = !bench.clk;
    }
    bench.final();
    return 0;
}
