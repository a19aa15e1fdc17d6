# Vivado's Tcl commands as UG835 documents them, as far as the generated scripts may use them: names, options, required
# arguments, and a model of a block design that is strict about pins. A command, an option, an IP setting or a pin that
# it does not know is an error. It designs nothing; its products are empty files and reports of the documented format.
# Run as `tclsh vivado_stub.tcl SCRIPT`; the calls are recorded in calls.txt.

# command {options with a value} {flags} least most positional arguments
array set COMMANDS {
  create_project {{-part -ip} {-force -in_memory -rtl_kernel -quiet -verbose} 0 2}
  add_files {{-fileset -of_objects -copy_to} {-norecurse -scan_for_includes -quiet -verbose} 0 1}
  get_files {{-regexp -filter -compile_order -used_in -of_objects} {-nocase -all -references -quiet -verbose} 0 1}
  set_property {{-name -value -objects} {-dict -quiet -verbose} 0 3}
  get_property {{} {-min -max -quiet -verbose} 2 2}
  update_compile_order {{-fileset} {-force_gui -quiet -verbose} 0 0}
  create_bd_design {{-dir -cell -boundary_from_container} {-bdsource -quiet -verbose} 1 1}
  get_ipdefs {{-filter -of_objects} {-all -regexp -nocase -quiet -verbose} 0 1}
  create_bd_cell {{-vlnv -type -reference} {-quiet -verbose} 1 1}
  get_bd_cells {{-filter -of_objects} {-hierarchical -regexp -quiet -verbose} 0 1}
  get_bd_pins {{-filter -of_objects} {-hierarchical -regexp -quiet -verbose} 0 1}
  get_bd_intf_pins {{-filter -of_objects} {-hierarchical -regexp -quiet -verbose} 0 1}
  get_bd_addr_spaces {{-filter -of_objects} {-regexp -legacy -quiet -verbose} 0 1}
  get_bd_addr_segs {{-filter -of_objects} {-regexp -addressed -unaddressed -quiet -verbose} 0 1}
  apply_bd_automation {{-rule -config -dict} {-opt -quiet -verbose} 0 1}
  connect_bd_intf_net {{-intf_net -boundary_type} {-auto -quiet -verbose} 2 2}
  connect_bd_net {{-net -boundary_type} {-quiet -verbose} 2 999}
  assign_bd_address {{-target_address_space -offset -range -master_boundary -boundary -import_from_file -export_to_file}
    {-quiet -verbose -force -external} 0 1}
  validate_bd_design {{-design} {-include_pfm -force -quiet -verbose} 0 0}
  save_bd_design {{} {-quiet -verbose} 0 1}
  generate_target {{} {-force -quiet -verbose} 2 2}
  make_wrapper {{-inst_template} {-top -testbench -import -force -fileset -files -quiet -verbose} 0 1}
  current_fileset {{} {-simset -constrset -blockset -quiet -verbose} 0 1}
  launch_runs {{-jobs -scripts_only -to_step -host -dir} {-force -quiet -verbose} 1 99}
  wait_on_runs {{-timeout} {-quiet -verbose} 1 99}
  get_runs {{-filter} {-regexp -nocase -quiet -verbose} 0 1}
  open_run {{-name} {-quiet -verbose} 1 1}
  write_checkpoint {{-cell -encrypt} {-force -quiet -verbose} 1 1}
  open_checkpoint {{-part} {-quiet -verbose} 1 1}
  opt_design {{-directive} {-retarget -propconst -sweep -quiet -verbose} 0 0}
  place_design {{-directive} {-no_timing_driven -timing_summary -unplace -quiet -verbose} 0 0}
  phys_opt_design {{-directive} {-fanout_opt -placement_opt -rewire -quiet -verbose} 0 0}
  route_design {{-directive -nets} {-unroute -preserve -tns_cleanup -quiet -verbose} 0 0}
  report_timing_summary {{-file -name -max_paths -nworst -delay_type -rpx} {-check_timing_verbose -no_header
    -report_unconstrained -append -return_string -quiet -verbose} 0 0}
  report_utilization {{-file -name -cells -pblocks -hierarchical_depth -spreadsheet_file -slr} {-append -hierarchical
    -return_string -quiet -verbose} 0 0}
  write_bitstream {{-cell -reference_bitfile} {-force -raw_bitfile -no_binary_bitfile -mask_file -readback_file
    -logic_location_file -bin_file -no_partial_bitfile -quiet -verbose} 1 1}
}
# IPs: the newest version, and the settings that a script may make (PG082, PG201, PG164, PG247)
array set IPS {processing_system7 5.5 zynq_ultra_ps_e 3.5 proc_sys_reset 5.0 smartconnect 1.0}
array set SETTINGS {
  processing_system7 {PCW_(USE_M_AXI_GP[01]|USE_S_AXI_HP[0-3]|S_AXI_HP[0-3]_DATA_WIDTH|USE_FABRIC_INTERRUPT|IRQ_F2P_INTR|EN_CLK[0-3]_PORT|EN_RST[0-3]_PORT|FPGA[0-3]_PERIPHERAL_FREQMHZ)}
  zynq_ultra_ps_e {PSU__(USE__M_AXI_GP[0-2]|USE__S_AXI_GP[0-6]|MAXIGP[0-2]__DATA_WIDTH|SAXIGP[0-6]__DATA_WIDTH|USE__IRQ[01]|FPGA_PL[0-3]_ENABLE|CRL_APB__PL[0-3]_REF_CTRL__FREQMHZ)}
  proc_sys_reset {C_(EXT_RST_WIDTH|AUX_RST_WIDTH|EXT_RESET_HIGH|AUX_RESET_HIGH|NUM_\w+)}
  smartconnect {NUM_(SI|MI|CLKS)}
}

array set CELL {}     ;# cell -> IP, or `module`
array set CONFIG {}   ;# cell,setting -> value
array set JOINED {}   ;# pin or interface -> what it is connected to
set MODULES {}        ;# interfaces of the referenced module: name {role mode}
set SOURCES {}
set calls [open calls.txt a]

proc refuse {text} {
  puts "ERROR: [expr {[string match {\[*} $text] ? "" : {[Stub 1-1] }}]$text"
  error $text
}

# Options and positional arguments of a call, checked.
proc parse {command arguments} {
  lassign $::COMMANDS($command) valued flags least most
  set options [dict create]
  set rest {}
  for {set i 0} {$i < [llength $arguments]} {incr i} {
    set word [lindex $arguments $i]
    if {[string match -* $word] && [string is alpha [string index $word 1]]} {
      if {$command eq "make_wrapper" && $word eq "-files"} {incr i; dict set options -files [lindex $arguments $i]; continue}
      if {$word in $valued} {
        incr i
        if {$i == [llength $arguments]} {refuse "$command: option $word lacks its value"}
        dict set options $word [lindex $arguments $i]
      } elseif {$word in $flags} {
        dict set options $word 1
      } else {
        refuse "$command has no option $word"
      }
    } else {
      lappend rest $word
    }
  }
  if {[llength $rest] < $least || [llength $rest] > $most} {
    refuse "$command takes $least to $most arguments, not [llength $rest]"
  }
  puts $::calls "$command $arguments"
  flush $::calls
  return [list $options $rest]
}

foreach command [array names COMMANDS] {
  proc $command args [format {lassign [parse %1$s $args] options rest; return [do_%1$s $options $rest]} $command]
  proc do_$command {options rest} {}
}

proc setting {cell name default} {
  if {[info exists ::CONFIG($cell,$name)]} {return $::CONFIG($cell,$name)}
  return $default
}

# Interfaces of a cell: name {role, clock pin}
proc interfaces {cell} {
  switch $::CELL($cell) {
    processing_system7 {
      set found {DDR external {} FIXED_IO external {}}
      if {[setting $cell PCW_USE_M_AXI_GP0 1]} {lappend found M_AXI_GP0 master M_AXI_GP0_ACLK}
      foreach n {0 1 2 3} {
        if {[setting $cell PCW_USE_S_AXI_HP$n 0]} {lappend found S_AXI_HP$n slave S_AXI_HP${n}_ACLK}
      }
    }
    zynq_ultra_ps_e {
      set found {}
      foreach {gp name default} {0 HPM0_FPD 1 1 HPM1_FPD 1 2 HPM0_LPD 0} {
        if {[setting $cell PSU__USE__M_AXI_GP$gp $default]} {
          lappend found M_AXI_$name master maxi[string tolower $name]_aclk
        }
      }
      foreach n {0 1 2 3} {
        if {[setting $cell PSU__USE__S_AXI_GP[expr {$n + 2}] 0]} {lappend found S_AXI_HP${n}_FPD slave saxihp${n}_fpd_aclk}
      }
    }
    smartconnect {
      set found {}
      for {set i 0} {$i < [setting $cell NUM_SI 1]} {incr i} {lappend found [format S%02d_AXI $i] slave aclk}
      for {set i 0} {$i < [setting $cell NUM_MI 1]} {incr i} {lappend found [format M%02d_AXI $i] master aclk}
    }
    module {set found $::MODULES}
    default {set found {}}
  }
  return $found
}

# Pins of a cell that are no part of an interface: name {direction, must be connected}
proc pins {cell} {
  set found {}
  switch $::CELL($cell) {
    processing_system7 {
      if {[setting $cell PCW_EN_CLK0_PORT 1]} {lappend found FCLK_CLK0 O 0}
      if {[setting $cell PCW_EN_RST0_PORT 1]} {lappend found FCLK_RESET0_N O 0}
      if {[setting $cell PCW_USE_FABRIC_INTERRUPT 0] && [setting $cell PCW_IRQ_F2P_INTR 0]} {lappend found IRQ_F2P I 0}
    }
    zynq_ultra_ps_e {
      if {[setting $cell PSU__FPGA_PL0_ENABLE 1]} {lappend found pl_clk0 O 0 pl_resetn0 O 0}
      if {[setting $cell PSU__USE__IRQ0 1]} {lappend found pl_ps_irq0 I 0}
    }
    smartconnect {lappend found aclk I 1 aresetn I 1}
    proc_sys_reset {
      lappend found slowest_sync_clk I 1 ext_reset_in I 1 aux_reset_in I 0 mb_debug_sys_rst I 0 dcm_locked I 0 \
        mb_reset O 0 bus_struct_reset O 0 peripheral_reset O 0 interconnect_aresetn O 0 peripheral_aresetn O 0
    }
    module {lappend found aclk I 1 aresetn I 1 irq O 0}
  }
  foreach {name role clock} [interfaces $cell] {
    if {$clock ne "" && $clock ni $found} {lappend found $clock I 1}
  }
  return $found
}

proc find {path finder what width} {
  lassign [split $path /] cell name
  if {![info exists ::CELL($cell)]} {refuse "there is no cell $cell"}
  foreach [lrange {found role more} 0 [expr {$width - 1}]] [$finder $cell] {if {$found eq $name} {return $path}}
  refuse "cell $cell has no $what $name"
}

proc do_create_project {options rest} {
  if {![regexp {^xc(7z0\d\d(s|clg)|zu\d+(cg|eg|ev)-|k26-)} [dict get $options -part]]} {
    refuse {[Coretcl 2-106] Specified part could not be found.}
  }
  file mkdir [lindex $rest 1]
  set ::PROJECT [lindex $rest 1]/[lindex $rest 0]
}

proc do_add_files {options rest} {
  foreach file [lindex $rest 0] {
    if {![file isfile $file]} {refuse "\[Vivado 12-172\] File or Directory '$file' does not exist"}
    lappend ::SOURCES $file
  }
}

proc do_get_files {options rest} {
  set pattern [lindex $rest 0]
  set found [lsearch -all -inline -glob $::SOURCES $pattern]
  if {$found eq "" && [string match *.bd $pattern]} {return $pattern}
  if {$found eq "" && ![dict exists $options -quiet]} {refuse "No files matched '$pattern'"}
  return $found
}

proc do_get_ipdefs {options rest} {
  foreach name [array names ::IPS] {
    if {[string match [lindex $rest 0] xilinx.com:ip:$name:$::IPS($name)]} {return xilinx.com:ip:$name:$::IPS($name)}
  }
  refuse "no IP matches [lindex $rest 0]"
}

proc do_create_bd_cell {options rest} {
  set cell [lindex $rest 0]
  if {[info exists ::CELL($cell)]} {refuse "there is a cell $cell"}
  switch [dict get $options -type] {
    ip {
      lassign [split [dict get $options -vlnv] :] vendor library name version
      if {"$vendor:$library" ne "xilinx.com:ip" || ![info exists ::IPS($name)] || $version ne $::IPS($name)} {
        refuse "there is no IP [dict get $options -vlnv]"
      }
      set ::CELL($cell) $name
    }
    module {
      set module [dict get $options -reference]
      set file [lsearch -inline -glob $::SOURCES */$module.v]
      if {$file eq ""} {refuse "a module reference needs a Verilog or VHDL source of $module"}
      set stream [open $file]
      set text [read $stream]
      close $stream
      if {![regexp {ASSOCIATED_BUSIF ([\w:]+), ASSOCIATED_RESET aresetn} $text - associated]} {refuse "no clocked interface"}
      set last {}
      foreach {- interface signal} [regexp -all -inline {interface:aximm:1\.0 (\w+) (\w+)"} $text] {
        lappend signals($interface) $signal
      }
      foreach interface [array names signals] {
        if {$interface ni [split $associated :]} {refuse "AXI interface $interface is not associated to any clock pin"}
        set role [expr {[string match s_* $interface] ? "slave" : "master"}]
        foreach needed {ARADDR ARVALID ARREADY RDATA RRESP RVALID RREADY} {
          if {$needed ni $signals($interface)} {refuse "$interface lacks $needed"}
        }
        lappend ::MODULES $interface $role aclk
      }
      set ::CELL($cell) module
    }
    default {refuse "create_bd_cell -type is ip, module, hier or container, not [dict get $options -type]"}
  }
  return $cell
}

proc do_get_bd_cells {options rest} {
  if {![info exists ::CELL([lindex $rest 0])]} {refuse "there is no cell [lindex $rest 0]"}
  return [lindex $rest 0]
}
proc do_get_bd_pins {options rest} {return [find [lindex $rest 0] pins pin 3]}
proc do_get_bd_intf_pins {options rest} {return [find [lindex $rest 0] interfaces interface 3]}

proc do_set_property {options rest} {
  if {[dict exists $options -dict]} {
    lassign $rest values cell
  } else {
    lassign $rest name value cell
    set values [list $name $value]
  }
  if {$cell eq ""} {refuse "set_property lacks its objects"}
  if {![info exists ::CELL($cell)]} return
  foreach {name value} $values {
    if {![regexp "^CONFIG\\.$::SETTINGS($::CELL($cell))$" $name]} {refuse "$::CELL($cell) has no setting $name"}
    set ::CONFIG($cell,[string range $name 7 end]) $value
  }
}

proc do_get_property {options rest} {
  lassign $rest name object
  switch $name {
    VLNV {return $object}
    PROGRESS {return [expr {[info exists ::env(STUB_SYNTHESIS_FAILS)] ? "0%" : "100%"}]}
    STATUS {return "synth_design ERROR"}
  }
  refuse "no property $name on $object"
}

proc do_apply_bd_automation {options rest} {
  foreach interface {DDR FIXED_IO} {set ::JOINED([lindex $rest 0]/$interface) external}
}

proc do_connect_bd_intf_net {options rest} {
  set roles {}
  foreach path $rest {
    lassign [split $path /] cell name
    if {[info exists ::JOINED($path)]} {refuse "$path is connected already"}
    lappend roles [dict get [concat {*}[lmap {n role clock} [interfaces $cell] {list $n $role}]] $name]
  }
  if {[lsort $roles] ne {master slave}} {refuse "$rest are not a master and a slave"}
  lassign $rest one other
  set ::JOINED($one) $other
  set ::JOINED($other) $one
}

proc do_connect_bd_net {options rest} {
  set source [lindex $rest 0]
  foreach path $rest {
    lassign [split $path /] cell name
    foreach {pin direction needed} [pins $cell] {if {$pin eq $name} break}
    if {($path eq $source) != ($direction eq "O")} {refuse "$path has the wrong direction"}
    if {$path ne $source && [info exists ::JOINED($path)]} {refuse "$path is driven already"}
    set ::JOINED($path) $source
  }
}

proc do_get_bd_addr_spaces {options rest} {
  lassign [split [lindex $rest 0] /] cell name
  if {$name ne "Data" || $::CELL($cell) ni {processing_system7 zynq_ultra_ps_e}} {refuse "no address space [lindex $rest 0]"}
  return [lindex $rest 0]
}
proc do_get_bd_addr_segs {options rest} {
  if {![string match */reg0 [lindex $rest 0]]} {refuse "no segment [lindex $rest 0]"}
  find [file dirname [lindex $rest 0]] interfaces interface 3
  return [lindex $rest 0]
}
proc do_assign_bd_address {options rest} {
  if {[dict exists $options -offset]} {set ::ADDRESSED 1}
}

proc do_validate_bd_design {options rest} {
  foreach cell [array names ::CELL] {
    foreach {name role clock} [interfaces $cell] {
      if {![info exists ::JOINED($cell/$name)]} {refuse "interface $cell/$name is not connected"}
    }
    foreach {name direction needed} [pins $cell] {
      if {$needed && ![info exists ::JOINED($cell/$name)]} {refuse "pin $cell/$name is not connected"}
    }
  }
  if {![info exists ::ADDRESSED]} {refuse "the registers have no address"}
  set ::VALID 1
}

proc do_get_runs {options rest} {return [lindex $rest 0]}
proc do_current_fileset {options rest} {return sources_1}
proc do_make_wrapper {options rest} {
  set file $::PROJECT.wrapper.v
  close [open $file w]
  return $file
}

proc do_launch_runs {options rest} {
  if {![info exists ::VALID]} {refuse "the block design is not validated"}
  file mkdir project/wattbit.runs/synth_1 project/wattbit.gen/sources_1/bd/wattbit/hw_handoff
  set log [open project/wattbit.runs/synth_1/runme.log w]
  if {[info exists ::env(STUB_SYNTHESIS_FAILS)]} {
    puts $log "ERROR: \[Synth 8-439\] module 'engine_w4a8' not found"
    puts $log "INFO: \[Common 17-206\] Exiting Vivado"
  }
  close $log
  product project/wattbit.gen/sources_1/bd/wattbit/hw_handoff/wattbit.hwh [handoff]
}

# PL clock 0 as the PS has it: the PLL, whose oscillator is a little slow, over a whole number.
proc handoff {} {
  if {[info exists ::CELL(processing_system7_0)]} {
    set names {PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ PCW_FCLK0_PERIPHERAL_DIVISOR0 PCW_FCLK0_PERIPHERAL_DIVISOR1}
    lassign {processing_system7 1000.0} ip pll
    set asked $::CONFIG(processing_system7_0,PCW_FPGA0_PERIPHERAL_FREQMHZ)
  } else {
    set names {PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0
      PSU__CRL_APB__PL0_REF_CTRL__DIVISOR1}
    lassign {zynq_ultra_ps_e 1499.985} ip pll
    set asked $::CONFIG(zynq_ultra_ps_e_0,PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ)
  }
  set divisor [expr {int(ceil($pll / $asked - 1e-4))}]
  set text "<EDKSYSTEM><MODULES><MODULE MODTYPE=\"$ip\"><PARAMETERS>\n"
  foreach name $names value [list [format %.6f [expr {$pll / $divisor}]] $divisor 1] {
    append text "<PARAMETER NAME=\"$name\" VALUE=\"$value\"/>\n"
  }
  return "$text</PARAMETERS></MODULE></MODULES></EDKSYSTEM>"
}

proc product {path text} {
  set stream [open $path w]
  puts $stream $text
  close $stream
}
proc do_write_checkpoint {options rest} {product [lindex $rest 0] "checkpoint"}
proc do_open_checkpoint {options rest} {
  if {![file isfile [lindex $rest 0]]} {refuse "there is no [lindex $rest 0]"}
}
proc do_place_design {options rest} {
  if {[info exists ::env(STUB_PLACEMENT_FAILS)]} {
    refuse {[Place 30-487] The packing of instances into the device could not be obeyed.}
  }
}
proc do_report_timing_summary {options rest} {file copy -force $::env(STUB_TIMING) [dict get $options -file]}
proc do_report_utilization {options rest} {file copy -force $::env(STUB_UTILISATION) [dict get $options -file]}
proc do_write_bitstream {options rest} {product [lindex $rest 0] "bitstream"}

source [lindex $argv 0]
